"""The column-wise walk over blocks that are stored row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def transposed_walk(rows: Tensor, cols: Tensor, block_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(ccol_indices, row_indices, block_order)`` of blocks at ``(rows, cols)`` sorted by row, then column.

    Args:
        rows, cols: int32 ``[nnz_blocks]``.
        block_cols: number of block columns.
    """
    order = torch.argsort(cols, stable=True)  # stable: rows stay ascending within a column
    ccol = torch.zeros(block_cols + 1, dtype=torch.int32, device=cols.device)
    ccol[1:] = torch.bincount(cols, minlength=block_cols).cumsum(0)
    return ccol, rows[order], order.to(torch.int32)
