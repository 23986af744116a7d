"""Which kernel entry each stored weight copies, and the nearest kernel: the mean over copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efcn_sparse.memory import in_huge_pages
from efcn_sparse.pattern import BlockPattern

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
        values = in_huge_pages(kernel.new_empty((self.class_of_block.numel(), *self.maps.shape[1:])))
        return torch.index_select(tiles, 0, self.class_of_block, out=values)

    def to(self, device: torch.device | str) -> Ties:
        """These ties with their arrays on ``device``; themselves if they are there already, or for ``"meta"``."""
        target = torch.device(device)
        if target.type == "meta" or target == self.maps.device:
            return self
        parts = (self.class_of_block, self.maps, self.class_starts, self.blocks_by_class, self.counts)
        return Ties(self.kernel_shape, *(part.to(target) for part in parts))

    def __deepcopy__(self, memo: dict[int, Any]) -> Ties:
        return self


@dataclass(frozen=True)
class KernelFacts:
    """What models ask a convolution's ``weight``, where there is no kernel any more: everything but its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"weight of an embedded convolution has shape, dtype and device alone, not {name!r}: its numbers are in "
            "layer.linear.values, those of the nearest kernel in layer.to_conv().weight"
        )


def mean_kernel(values: Tensor, ties: Ties, unread: Tensor | None) -> Tensor:
    """Each kernel entry as the mean over its stored copies: the orthogonal projection onto tied weights.

    Sums are fp64, of differences to one of the copies, so that equal copies give back exactly their number.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        ties: of the layer that ``values`` belong to.
        unread: the kernel entries without a copy, in order; None where there are none.

    Returns:
        ``ties.kernel_shape``, in the dtype of ``values``.
    """
    entries = ties.counts.numel()
    tied_classes = (ties.maps >= 0).flatten(1).any(1).nonzero().squeeze(1)
    starts, sizes = ties.class_starts[:-1][tied_classes].to(torch.int64), ties.class_starts.diff()[tied_classes]
    maps = ties.maps[tied_classes].to(torch.int64)
    tied = maps >= 0
    at = maps[tied]

    first = values[ties.blocks_by_class[starts].to(torch.int64)]
    one_copy = torch.zeros(entries, dtype=values.dtype, device=values.device)
    one_copy.scatter_reduce_(0, at, first[tied], "amax", include_self=False)  # any copy will do, the same every run
    reference = torch.zeros(maps.shape, dtype=torch.float64, device=values.device)
    reference[tied] = one_copy[at].to(torch.float64)

    differences = torch.zeros_like(reference)
    for k in range(int(sizes.max()) if sizes.numel() else 0):  # the k-th block of every class at once: no collisions
        has = (sizes > k).nonzero().squeeze(1)
        blocks = ties.blocks_by_class[starts[has] + k].to(torch.int64)
        differences[has] += values[blocks].to(torch.float64) - reference[has]
    total = torch.zeros(entries, dtype=torch.float64, device=values.device)
    total.index_put_((at,), differences[tied], accumulate=True)
    kernel = (one_copy.to(torch.float64) + total / ties.counts.clamp(min=1)).to(values.dtype)
    if unread is not None:
        kernel[ties.counts == 0] = unread.to(values.dtype)
    return kernel.view(ties.kernel_shape)


def mean_bias(bias: Tensor, channels: int) -> Tensor:
    """Each channel's bias as the mean over positions, exact where all are equal.

    Args:
        bias: ``[positions * channels]``.
    """
    by_position = bias.view(-1, channels).to(torch.float64)
    return (by_position[0] + (by_position - by_position[0]).mean(0)).to(bias.dtype)


def off_local_blocks(ties: Ties) -> Tensor:
    """bool ``[nnz_blocks]``: the stored blocks without a single local entry."""
    return (ties.maps < 0).flatten(1).all(1)[ties.class_of_block.to(torch.int64)]


def moved_ties(ties: Ties, pattern: BlockPattern, source: Tensor) -> Ties:
    """The ties of the blocks of ``pattern``, of which those that are new are wholly off-local.

    Args:
        ties: of the blocks as they were.
        source: int64 ``[nnz_blocks]``: which old block each block is; -1: it is new.

    Returns:
        On the device of ``ties``.
    """
    device = ties.maps.device
    source, old = source.cpu(), ties.to("cpu")
    (grid_rows, grid_cols), (height, width) = pattern.grid, pattern.block_shape
    new = (source < 0).nonzero().squeeze(1)
    last_row = pattern.rows_of_blocks().cpu()[new] == grid_rows - 1
    last_col = pattern.col_indices.cpu()[new] == grid_cols - 1
    rest = (pattern.shape[0] - (grid_rows - 1) * height, pattern.shape[1] - (grid_cols - 1) * width)

    classes = old.class_of_block.to(torch.int64)[source.clamp(min=0)] if len(old.class_of_block) else source.clone()
    maps = old.maps
    for at_bottom in (False, True):
        for at_right in (False, True):
            blocks = new[(last_row == at_bottom) & (last_col == at_right)]
            if blocks.numel():
                entries = torch.full((1, height, width), OFF_LOCAL, dtype=torch.int32)
                entries[:, rest[0] if at_bottom else height :] = OUTSIDE
                entries[:, :, rest[1] if at_right else width :] = OUTSIDE
                known = (maps == entries).flatten(1).all(1).nonzero()
                classes[blocks] = int(known[0]) if known.numel() else len(maps)
                maps = maps if known.numel() else torch.cat([maps, entries])
    return Ties.of_classes(ties.kernel_shape, classes, maps).to(device)
