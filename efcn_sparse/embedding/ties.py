"""Which kernel entry each stored weight copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OFF_LOCAL = -1
OUTSIDE = -2
_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Ties:
    """The ties of an embedded convolution's weights, kept once per class of blocks.

    Two stored blocks share a class iff their element maps are the same, so where blocks divide the channels the maps
    have about as many entries as the kernel, and all purely off-local blocks share one class.

    Attributes:
        kernel_shape: the shape of the convolution's ``weight``.
        class_of_block: int32 ``[nnz_blocks]``.
        maps: int32 ``[n_classes, block_rows, block_cols]``: the index into ``weight.flatten()`` that an entry copies;
            ``OFF_LOCAL``: in the support, outside the receptive field; ``OUTSIDE``: not in the support, or past the
            edge of the matrix.
        class_starts: int32 ``[n_classes + 1]``, and
        blocks_by_class: int32 ``[nnz_blocks]``: the blocks of class c are
            ``blocks_by_class[class_starts[c]:class_starts[c + 1]]``, ascending.
        counts: int64 ``[kernel entries]``: how many stored copies each kernel entry has.
    """

    kernel_shape: tuple[int, ...]
    class_of_block: Tensor
    maps: Tensor
    class_starts: Tensor
    blocks_by_class: Tensor
    counts: Tensor

    @classmethod
    def of_classes(cls, kernel_shape: tuple[int, ...], class_of_block: Tensor, maps: Tensor) -> Ties:
        """The ties of blocks with known classes and maps.

        Args:
            class_of_block: integers ``[nnz_blocks]``.
            maps: int32 ``[n_classes, block_rows, block_cols]``.
        """
        sizes = torch.bincount(class_of_block, minlength=maps.shape[0])
        starts = torch.zeros(maps.shape[0] + 1, dtype=torch.int32)
        starts[1:] = sizes.cumsum(0)
        counts = torch.zeros(math.prod(kernel_shape), dtype=torch.int64)
        chunk = max(1, _CHUNK_ELEMENTS // max(1, maps[:1].numel()))
        for first in range(0, maps.shape[0], chunk):
            entries = maps[first : first + chunk].flatten(1)
            copies = sizes[first : first + chunk, None].expand_as(entries)
            tied = entries >= 0
            counts.index_add_(0, entries[tied], copies[tied])
        return cls(
            tuple(kernel_shape), class_of_block.to(torch.int32), maps, starts,
            torch.argsort(class_of_block, stable=True).to(torch.int32), counts,
        )  # fmt: skip

    def scatter(self, kernel: Tensor) -> Tensor:
        """``values`` whose tied entries copy ``kernel`` and whose other entries are zero.

        Args:
            kernel: of ``kernel_shape``, on the device of the ties.

        Returns:
            ``[nnz_blocks, block_rows, block_cols]``.
        """
        if tuple(kernel.shape) != self.kernel_shape:
            raise ValueError(f"kernel must be {list(self.kernel_shape)}, got {list(kernel.shape)}")
        padded = torch.cat([kernel.flatten(), kernel.new_zeros(1)])
        tiles = kernel.new_empty(self.maps.shape)
        chunk = max(1, _CHUNK_ELEMENTS // max(1, self.maps[:1].numel()))
        for first in range(0, self.maps.shape[0], chunk):
            entries = self.maps[first : first + chunk]
            entries = entries.masked_fill(entries < 0, kernel.numel())
            tiles[first : first + chunk] = padded.index_select(0, entries.flatten()).view(entries.shape)
        return tiles.index_select(0, self.class_of_block)

    def to(self, device: torch.device | str) -> Ties:
        """These ties with their arrays on ``device``; themselves if they are there already, or for ``"meta"``."""
        target = torch.device(device)
        if target.type == "meta" or target == self.maps.device:
            return self
        parts = (self.class_of_block, self.maps, self.class_starts, self.blocks_by_class, self.counts)
        return Ties(self.kernel_shape, *(part.to(target) for part in parts))

    def __deepcopy__(self, memo: dict[int, Any]) -> Ties:
        return self
