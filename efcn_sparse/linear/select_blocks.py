"""Which blocks of a dense matrix to keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.checks import check_has_numbers, checked_pair
from efcn_sparse.pattern.sources import covering


def strongest_blocks(weight: Tensor, *, density: float, block_shape: Sequence[int], cover: bool = True) -> BlockPattern:
    """The pattern of the ``round(density * blocks)`` blocks of ``weight`` with the largest Frobenius norms.

    Args:
        weight: ``[out_features, in_features]``.
        cover: see that no block row or block column is without a block, by its strongest ones in place of the weakest
            of others; where there are too few blocks, more are stored. A density of 0 stores none.
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    check_has_numbers("weight", weight)
    height, width = checked_pair("block_shape", block_shape, least=1)
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % width, 0, -weight.shape[0] % height))
    rows, cols = padded.shape[0] // height, padded.shape[1] // width
    norms = padded.view(rows, height, cols, width).double().square().sum((1, 3))
    kept = torch.argsort(norms.flatten(), descending=True, stable=True)[: round(density * rows * cols)]
    if cover and density > 0:
        weakest_first = torch.arange(kept.numel(), device=kept.device).flip(0)
        kept = covering(kept, (rows, cols), lambda r, c: _strongest_cover(norms, r, c), lambda: weakest_first)
    return BlockPattern.from_blocks(kept // max(cols, 1), kept % max(cols, 1), weight.shape, (height, width))


def _strongest_cover(norms: Tensor, bare_rows: Tensor, bare_cols: Tensor) -> Tensor:
    """int64: few strong blocks at these rows and columns: pairs of a row and a column while there are both."""
    cols, found = norms.shape[1], []
    rows_left, cols_left = dict.fromkeys(bare_rows.tolist()), dict.fromkeys(bare_cols.tolist())
    crossing = norms[bare_rows][:, bare_cols]
    for place in torch.argsort(crossing.flatten(), descending=True, stable=True).tolist():
        row, col = int(bare_rows[place // len(bare_cols)]), int(bare_cols[place % len(bare_cols)])
        if row in rows_left and col in cols_left:
            del rows_left[row], cols_left[col]
            found.append(row * cols + col)
    found += [row * cols + int(norms[row].argmax()) for row in rows_left]
    found += [int(norms[:, col].argmax()) * cols + col for col in cols_left]
    return torch.tensor(found, dtype=torch.int64, device=norms.device)
