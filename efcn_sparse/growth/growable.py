"""Layers whose blocks may move, with whatever is built on where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn

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


class Parts(NamedTuple):
    """A layer that may grow: where its weights are, which blocks may leave, and who must follow."""

    linear: SparseLinear
    movable: Tensor
    follow: Callable[[BlockPattern, Tensor], Commit]


def parts_of(layer: nn.Module) -> Parts:
    """The parts of a :class:`SparseLinear`, or of a module around one.

    Raises:
        TypeError: it is neither.
        NotImplementedError: the blocks of the layer may not move.
    """
    if isinstance(layer, SparseLinear):
        if layer.pattern_owner is not None:
            raise NotImplementedError(
                f"layer must be the {layer.pattern_owner} itself, whose ties follow its blocks, "
                "got the SparseLinear inside it"
            )
        masked = stored_pattern(layer).mask_index  # a masked block could not come back as it was: new blocks are whole
        whole = masked < 0 if masked.numel() else torch.ones(len(layer.values), dtype=torch.bool, device=masked.device)
        return Parts(layer, whole, lambda pattern, source: _nothing)
    if is_growable(layer):
        return Parts(layer.linear, layer.movable_blocks(), layer.follow_blocks)
    raise TypeError(f"layer must be a SparseLinear or an embedded convolution, got {type(layer).__name__}")


def _nothing() -> None:
    pass
