"""Blocks that are only partly inside a support."""

from __future__ import annotations

import torch
from torch import Tensor


def blocks_of_mask(mask: Tensor, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """``(rows, cols, entries)`` of the blocks of ``mask`` that hold a true entry, in row-major order.

    Args:
        mask: bool ``[out, in]``.

    Returns:
        int64 ``[n]`` twice, and bool ``[n, block_rows, block_cols]``.
    """
    block_rows, block_cols = block_shape
    rows, cols = -(-mask.shape[0] // block_rows), -(-mask.shape[1] // block_cols)
    padding = (0, cols * block_cols - mask.shape[1], 0, rows * block_rows - mask.shape[0])
    tiles = torch.nn.functional.pad(mask, padding).view(rows, block_rows, cols, block_cols).transpose(1, 2)
    row, col = tiles.any(-1).any(-1).nonzero(as_tuple=True)
    return row, col, tiles[row, col]


def unique_masks(entries: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """``(mask_index, masks)`` that store each distinct partial block once.

    Args:
        entries: bool ``[n, block_rows, block_cols]``: the entries in the support.
        inside: the same shape: the entries inside the matrix, or None if all of them are.
    """
    outside = ~entries if inside is None else ~entries & inside
    partial = outside.flatten(1).any(1)
    if not bool(partial.any()):
        return entries.new_empty(0, dtype=torch.int32), entries.new_empty((0, *entries.shape[1:]), dtype=torch.uint8)
    masks, which = torch.unique(entries[partial].to(torch.uint8).flatten(1), dim=0, return_inverse=True)
    index = torch.full((entries.shape[0],), -1, dtype=torch.int32, device=entries.device)
    index[partial] = which.to(torch.int32)
    return index, masks.view(-1, *entries.shape[1:])
