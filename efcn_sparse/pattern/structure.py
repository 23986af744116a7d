"""The index arrays of a pattern by name, and what can be read off them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

T = TypeVar("T")
_NOTES: dict[Hashable, tuple[tuple[StorageWeakRef, ...], dict[Hashable, Any]]] = {}


def grid_of(shape: Sequence[int], block_shape: Sequence[int]) -> tuple[int, int]:
    """How many block rows and block columns a matrix has; the last ones may reach past its edge."""
    return -(-shape[0] // block_shape[0]), -(-shape[1] // block_shape[1])


class Walk(NamedTuple):
    """The stored blocks line by line: block row by block row, or block column by block column.

    Attributes:
        starts: int32 ``[lines + 1]``: where the blocks of each line begin.
        neighbors: int32 ``[nnz_blocks]``: the position of each block within its line.
        blocks: int32 ``[nnz_blocks]``: where in ``values`` each block lies.
    """

    starts: Tensor
    neighbors: Tensor
    blocks: Tensor

    def lines(self) -> Tensor:
        """int32 ``[nnz_blocks]``: the line of each block, in the order of the walk."""
        every = torch.arange(self.starts.numel() - 1, dtype=torch.int32, device=self.starts.device)
        return torch.repeat_interleave(every, self.starts.diff(), output_size=self.neighbors.numel())


class Structure(NamedTuple):
    """The arrays of ``BlockPattern`` in the order in which operators take them as ``Tensor[] structure``."""

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    block_order: Tensor
    mask_index: Tensor
    masks: Tensor

    @classmethod
    def from_rows(cls, crow: Tensor, col: Tensor, block_cols: int, mask_index: Tensor, masks: Tensor) -> Structure:
        """Both walks from the one over block rows, int32 as it is."""
        row = Walk(crow, col, col).lines()
        order = torch.argsort(col, stable=True)  # stable: rows stay ascending within a column
        ccol = torch.zeros(block_cols + 1, dtype=torch.int32, device=col.device)
        ccol[1:] = torch.bincount(col, minlength=block_cols).cumsum(0)
        return cls(crow, col, ccol, row[order], order.to(torch.int32), mask_index, masks)

    def walk(self, transpose: bool) -> Walk:
        """The blocks by block rows; with ``transpose``, by block columns."""
        if transpose:
            return Walk(self.ccol_indices, self.row_indices, self.block_order)
        blocks = torch.arange(self.col_indices.numel(), dtype=torch.int32, device=self.col_indices.device)
        return Walk(self.crow_indices, self.col_indices, blocks)

    def rows_of_blocks(self) -> Tensor:
        """int32 ``[nnz_blocks]``: the block row of each block, in the order of ``values``."""
        rows = torch.empty_like(self.row_indices)  # quicker than Walk.lines: torch shares even a tiny one among threads
        rows[self.block_order.to(torch.int64)] = self.row_indices
        return rows

    def extents(self, shape: Sequence[int], block_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """int64 ``[nnz_blocks]`` twice: how many rows and columns of each block lie inside the matrix."""
        heights = shape[0] - self.rows_of_blocks().to(torch.int64) * block_shape[0]
        widths = shape[1] - self.col_indices.to(torch.int64) * block_shape[1]
        return heights.clamp(max=block_shape[0]), widths.clamp(max=block_shape[1])

    def inside(self, shape: Sequence[int], block_shape: Sequence[int]) -> Tensor | None:
        """bool ``[nnz_blocks, block_rows, block_cols]``: entries inside the matrix; None if all of them are."""
        if shape[0] % block_shape[0] == 0 and shape[1] % block_shape[1] == 0:
            return None
        heights, widths = self.extents(shape, block_shape)
        rows = torch.arange(block_shape[0], device=heights.device) < heights[:, None]
        cols = torch.arange(block_shape[1], device=widths.device) < widths[:, None]
        return rows[:, :, None] & cols[:, None, :]

    def support(self, shape: Sequence[int], block_shape: Sequence[int]) -> Tensor | None:
        """bool ``[nnz_blocks, block_rows, block_cols]``: stored entries in the support; None if all of them are."""
        inside = self.inside(shape, block_shape)
        if self.masks.shape[0] == 0:
            return inside
        masked = self.masks[self.mask_index.to(torch.int64).clamp(min=0)].bool() | (self.mask_index < 0)[:, None, None]
        return masked if inside is None else inside & masked

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()`` of the first call with this key for these arrays, for as long as they live unchanged.

        Arrays are known by their memory, whatever tensor objects autograd or the compiler hand on, and by their version
        counters, so that writing to one is noticed. Weak references to the memory keep another array from being taken
        for one that is gone. Inference tensors have no version counter: for them nothing is remembered.
        """
        if torch.is_inference_mode_enabled() and any(part.is_inference() for part in self):
            return make()
        notes = self._notes()
        if key not in notes:
            notes[key] = make()
        return notes[key]

    def _notes(self) -> dict[Hashable, Any]:
        name = tuple([(part.data_ptr(), part._version, part.shape, part.stride(), part.dtype) for part in self])
        found = _NOTES.get(name)
        if found is not None and not any(ref.expired() for ref in found[0]):
            return found[1]
        for dead in [known for known, (refs, _) in list(_NOTES.items()) if any(ref.expired() for ref in refs)]:
            _NOTES.pop(dead, None)
        notes: dict[Hashable, Any] = {}
        _NOTES[name] = tuple(StorageWeakRef(part.untyped_storage()) for part in self), notes
        return notes
