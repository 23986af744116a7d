"""The pattern and the ties of a convolution's fully-connected twin."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.embedding.classes import classify
from efcn_sparse.embedding.cover import covered_blocks, grid_of
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.spread import with_spread_blocks
from efcn_sparse.embedding.support import Support
from efcn_sparse.embedding.ties import OUTSIDE, Ties
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.masks import unique_masks


def build(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> tuple[BlockPattern, Ties]:
    """The pattern of ``support`` in blocks of ``block_shape``, and which kernel entry each stored weight copies.

    Work grows with the number of stored blocks and with the size of the kernel, never with W.

    Law: ``pattern == BlockPattern.from_mask(mask of the support, block_shape)``, but for :class:`Grown`, whose blocks
    are whole.

    Example:
        >>> from efcn_sparse.embedding.support import Local
        >>> g = ConvGeometry(1, 1, 1, (4,), (3,), (1,), ((1, 1),), (1,))
        >>> pattern, ties = build(g, Local(), (1, 1))
        >>> pattern.nnz, ties.counts
        (10, tensor([3, 4, 3]))
    """
    with torch.device("cpu"):  # whatever the default device is
        rows, cols = _stored_blocks(geometry, support, block_shape)
        classes, maps = classify(geometry, support, block_shape, rows, cols)
        shape = (geometry.out_features, geometry.in_features)
        crow = torch.zeros(-(-shape[0] // block_shape[0]) + 1, dtype=torch.int64)
        crow[1:] = torch.bincount(rows, minlength=crow.numel() - 1).cumsum(0)
        mask_index, masks = _masks(shape, block_shape, rows, cols, classes, maps)
        pattern = BlockPattern.from_bsr(crow, cols, shape, block_shape, mask_index=mask_index, masks=masks)
        return pattern, Ties.of_classes(geometry.kernel_shape, classes, maps)


def _stored_blocks(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``(rows, cols)`` of the blocks to store, sorted by row, then column."""
    rows, cols = covered_blocks(geometry, support, block_shape)
    grid = grid_of(geometry, block_shape)
    more = support.most_blocks(rows.numel(), grid[0] * grid[1]) - rows.numel()
    if more == 0:
        return rows, cols
    blocks = with_spread_blocks(rows * grid[1] + cols, more, grid[0] * grid[1])
    return blocks // grid[1], blocks % grid[1]


def _masks(
    shape: tuple[int, int], block_shape: tuple[int, int], rows: Tensor, cols: Tensor, classes: Tensor, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """``(mask_index, masks)`` of the blocks with an entry inside the matrix and outside the support."""
    height = (shape[0] - rows * block_shape[0]).clamp(max=block_shape[0])
    width = (shape[1] - cols * block_shape[1]).clamp(max=block_shape[1])
    missing = torch.stack([(entries == OUTSIDE).sum() for entries in maps]) if maps.shape[0] else maps.new_empty(0)
    partial = missing[classes] > block_shape[0] * block_shape[1] - height * width
    used = torch.unique(classes[partial])
    mask_of_used, masks = unique_masks(maps[used] != OUTSIDE, None)
    mask_of_class = torch.full((maps.shape[0],), -1, dtype=torch.int32)
    mask_of_class[used] = mask_of_used if mask_of_used.numel() else -1
    return torch.where(partial, mask_of_class[classes], -1), masks
