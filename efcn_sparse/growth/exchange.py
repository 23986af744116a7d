"""A layer's blocks, and all that belongs to them, at their new places: wholly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.fused.state import fresh_state, moved_blocks
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.state import stored_pattern
from efcn_sparse.pattern import BlockPattern

Commit = Callable[[], None]


class Growable(Protocol):
    """A module around a :class:`SparseLinear` that keeps something built on the pattern of it."""

    linear: SparseLinear

    @property
    def grows(self) -> bool:
        """Whether its blocks may move."""

    def movable_blocks(self) -> Tensor:
        """bool ``[nnz_blocks]``: the stored blocks that may leave.

        Raises:
            NotImplementedError: the module's blocks stay where they are.
        """

    def follow_blocks(self, pattern: BlockPattern, source: Tensor) -> Commit:
        """Prepare for ``pattern``, whose k-th block is the old block ``source[k]``, or new where that is -1.

        What is returned makes it so, cannot fail, and may be called again.

        Raises:
            ValueError: the pattern lacks a block that may not leave.
        """


def is_growable(module: object) -> TypeGuard[Growable]:
    """Whether a module is :class:`Growable`; from Python 3.12 on, isinstance of a protocol sees no submodules."""
    members = ("linear", "grows", "movable_blocks", "follow_blocks")
    return isinstance(module, nn.Module) and all(hasattr(module, member) for member in members)


class GrowingLayer(NamedTuple):
    """A layer that may grow: where its weights are, which blocks may leave, and who must follow."""

    linear: SparseLinear
    movable: Tensor
    follow: Callable[[BlockPattern, Tensor], Commit]


def growing_layer(layer: nn.Module) -> GrowingLayer:
    """A :class:`SparseLinear`, or a module around one, as a layer that grows.

    Raises:
        TypeError: it is neither.
        NotImplementedError: the blocks of the layer may not move.
        ValueError: the values are not numbers, all of them in this process.
    """
    if isinstance(layer, SparseLinear):
        if layer.pattern_owner is not None:
            raise NotImplementedError(
                f"layer must be the {layer.pattern_owner} itself, whose ties follow its blocks, "
                "got the SparseLinear inside it"
            )
        masked = stored_pattern(layer).mask_index  # a masked block could not come back as it was: new blocks are whole
        whole = masked < 0 if masked.numel() else torch.ones(len(layer.values), dtype=torch.bool, device=masked.device)
        found = GrowingLayer(layer, whole, lambda pattern, source: _nothing)
    elif is_growable(layer):
        found = GrowingLayer(layer.linear, layer.movable_blocks(), layer.follow_blocks)
    else:
        raise TypeError(f"layer must be a SparseLinear or an embedded convolution, got {type(layer).__name__}")
    values = found.linear.values
    if values.is_meta:
        raise ValueError(f"layer.values must hold numbers, got a meta tensor of shape {list(values.shape)}")
    if type(values.detach()) is not Tensor:  # a DTensor, say: blocks cannot move between processes
        raise ValueError(f"layer.values must be a plain tensor, got {type(values.detach()).__name__}")
    return found


def _nothing() -> None:
    pass


class BlockState(NamedTuple):
    """A tensor with one number for each of the values, and what it holds for a value that is new."""

    tensor: Tensor
    fresh: float


def state_of_blocks(optimizer: Optimizer | None, values: nn.Parameter) -> list[BlockState]:
    """What of an optimizer's state must move; that of a fused one moves with the layer's product.

    Raises:
        ValueError: the optimizer does not hold ``values``, or has state of another shape that belongs to its blocks.
    """
    if optimizer is None or isinstance(optimizer, FusedOptimizer):
        return []
    kind = type(optimizer).__name__
    group = next((g for g in optimizer.param_groups if any(values is parameter for parameter in g["params"])), None)
    if group is None:
        raise ValueError(f"optimizer must hold layer.values, got {kind} without them")
    state: dict[str, Any] = optimizer.state.get(values, {})
    found = []
    for key, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == values.shape:
            found.append(BlockState(entry, fresh_state(optimizer, group, key)))
        elif (isinstance(entry, Tensor) and entry.dim() == 0) or isinstance(entry, (bool, int, float, str, type(None))):
            continue
        else:
            what = f"shape {list(entry.shape)}" if isinstance(entry, Tensor) else type(entry).__name__
            raise ValueError(
                f"optimizer must keep scalars or tensors shaped like values {list(values.shape)}, "
                f"got state {key!r} of {what}"
            )
    return found


def exchange_blocks(
    layer: GrowingLayer, pattern: BlockPattern, source: Tensor, states: Sequence[BlockState] = ()
) -> None:
    """Give a layer another pattern; blocks that stay keep their values, new ones start at zero.

    Everything new is made first, so an error leaves the layer as it was. What interrupts the writing finds it finished.
    ``values`` stays the same parameter, and the same memory if the number of blocks stays.

    Args:
        layer: whose blocks move.
        pattern: the one to come.
        source: int64 ``[nnz_blocks]``: which old block each new block is; -1: it is new.
        states: of an optimizer, for these blocks.
    """
    linear = layer.linear
    values, gradient = linear.values.detach(), linear.values.grad
    resized = pattern.nnz_blocks != linear.pattern.nnz_blocks
    moved: list[tuple[Tensor, Tensor]] = []
    if resized:
        values = moved_blocks(values, source)
    else:
        belonging = [(linear.values, 0.0), *states, *([] if gradient is None else [(gradient, 0.0)])]
        moved = [(tensor, moved_blocks(tensor.detach(), source, fresh)) for tensor, fresh in belonging]
    follow: list[Commit] = [layer.follow(pattern, source)]
    if linear.product is not None:
        follow.append(linear.product.follow(pattern, source, values))
    pattern.fingerprint  # noqa: B018  # worked out here, so that nothing is left to fail

    @torch.no_grad()
    def commit() -> None:
        for tensor, contents in moved:
            tensor.copy_(contents)
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
