"""Results of large layers, checked at a few block rows, block columns and blocks in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.bench import relative_error
from efcn_sparse.pattern import BlockPattern

_SAMPLES, _BLOCKS = 3, 32


def spmm_error(y: Tensor, x: Tensor, values: Tensor, pattern: BlockPattern, transpose: bool) -> float:
    """The relative error of some block rows of ``x Wᵀ`` (columns of ``x W``); ``values`` are zero off the support."""
    if transpose:
        starts, others, blocks = pattern.ccol_indices, pattern.row_indices, pattern.block_order
    else:
        starts, others = pattern.crow_indices, pattern.col_indices
        blocks = torch.arange(others.numel(), device=others.device)
    height, width = pattern.block_shape[::-1] if transpose else pattern.block_shape
    found, expected = [], []
    for strip in _some(starts.numel() - 1, _SAMPLES):
        first, last = starts[strip : strip + 2].tolist()
        total = y.new_zeros((y.shape[0], height), dtype=torch.float32)
        for other, block in zip(others[first:last].tolist(), blocks[first:last].tolist(), strict=True):
            stored = values[block] if transpose else values[block].T
            part = x[:, other * width : (other + 1) * width].float()
            total += part @ stored[: part.shape[1]].float()
        part = y[:, strip * height : (strip + 1) * height]
        found.append(part)
        expected.append(total[:, : part.shape[1]])
    return relative_error(torch.cat(found, 1), torch.cat(expected, 1))


def sddmm_error(out: Tensor, a: Tensor, b: Tensor, pattern: BlockPattern) -> float:
    """The relative error of some blocks of ``aᵀ b``."""
    height, width = pattern.block_shape
    rows = pattern.rows_of_blocks()
    found, expected = [], []
    for block in _some(pattern.nnz_blocks, _BLOCKS):
        row, col = int(rows[block]), int(pattern.col_indices[block])
        left, right = a[:, row * height : (row + 1) * height], b[:, col * width : (col + 1) * width]
        exact = left.float().T @ right.float()
        if pattern.mask_index.numel() and int(pattern.mask_index[block]) >= 0:
            support = pattern.masks[int(pattern.mask_index[block])].bool()
            exact = exact * support[: exact.shape[0], : exact.shape[1]]
        found.append(out[block, : exact.shape[0], : exact.shape[1]].flatten())
        expected.append(exact.flatten())
    return relative_error(torch.cat(found), torch.cat(expected))


def _some(number: int, most: int) -> list[int]:
    """The first, the last, and some between."""
    picked = torch.linspace(0, number - 1, min(most, number)).round().long()
    return sorted(set(picked.tolist()))
