"""A layer's blocks, and all that belongs to them, at their new places: wholly or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.growth.growable import Commit, Parts
from efcn_sparse.growth.moved_state import Move
from efcn_sparse.linear import SparseLinear
from efcn_sparse.pattern import BlockPattern


def exchange_blocks(parts: Parts, pattern: BlockPattern, source: Tensor, states: Sequence[Tensor]) -> None:
    """Give a layer another pattern; blocks that stay keep their values, new ones start at zero.

    Everything new is made first, so an error leaves the layer as it was. What interrupts the writing finds it finished.
    ``values`` stays the same parameter, and the same memory if the number of blocks stays.

    Args:
        parts: of the layer.
        pattern: the one to come.
        source: int64 ``[nnz_blocks]``: which old block each new block is; -1: it is new.
        states: tensors shaped like ``values`` that belong to its blocks.
    """
    linear = parts.linear
    resized = pattern.nnz_blocks != linear.pattern.nnz_blocks
    move = Move(source)
    values = linear.values.detach()
    if resized:
        values = move.made_of(values)
    else:
        move.add(linear.values)
        for tensor in (*states, *([] if linear.values.grad is None else [linear.values.grad])):
            move.add(tensor)
    follow: list[Commit] = [parts.follow(pattern, source)]
    if linear.product is not None:
        follow.append(linear.product.follow(pattern, source, values))
    pattern.fingerprint  # noqa: B018  # worked out here, so that nothing is left to fail

    def commit() -> None:
        move.commit()
        if resized:
            linear.values.data, linear.values.grad = values, None
        for others in follow:
            others()
        linear.pattern = pattern

    try:
        commit()
    except BaseException:  # nothing is left to allocate, so this is an interruption: finish, then let it through
        commit()
        raise
    torch.autograd.graph.increment_version(linear.values)


def check_may_move(linear: SparseLinear) -> None:
    """Raise ``ValueError`` unless the values are numbers, all of them in this process."""
    if linear.values.is_meta:
        raise ValueError(f"layer.values must hold numbers, got a meta tensor of shape {list(linear.values.shape)}")
    if type(linear.values.detach()) is not Tensor:  # a DTensor, say: blocks cannot move between processes
        raise ValueError(f"layer.values must be a plain tensor, got {type(linear.values.detach()).__name__}")
