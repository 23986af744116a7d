"""Which blocks of a dense matrix to keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.checks import checked_density, checked_pair
from efcn_sparse.pattern.sources import covering


def strongest_blocks(weight: Tensor, *, density: float, block_shape: Sequence[int], cover: bool = True) -> BlockPattern:
    """The pattern of the ``round(density * blocks)`` blocks of ``weight`` with the largest Frobenius norms.

    Args:
        weight: ``[out_features, in_features]``.
        cover: see that no block row or block column is without a block, by its strongest ones in place of the weakest
            of others; where there are too few blocks, more are stored. A density of 0 stores none.

    On the meta device the norms are not known: it is some pattern with as many blocks, in place of one to be loaded.
    """
    density = checked_density(density)
    height, width = checked_pair("block_shape", block_shape, least=1)
    norms = sums_of_blocks(weight.double().square(), (height, width))
    if weight.is_meta:
        norms = torch.zeros(norms.shape, device="cpu")
    cols = norms.shape[1]
    kept = highest_blocks(norms, round(density * norms.numel()), cover=cover and density > 0)
    return BlockPattern.from_blocks(kept // max(cols, 1), kept % max(cols, 1), weight.shape, (height, width))


def sums_of_blocks(entries: Tensor, block_shape: Sequence[int]) -> Tensor:
    """``[block rows, block columns]``: the sum over each block of a matrix, whose sides may be ragged."""
    height, width = block_shape
    padded = torch.nn.functional.pad(entries, (0, -entries.shape[1] % width, 0, -entries.shape[0] % height))
    return padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width).sum((1, 3))


def highest_blocks(scores: Tensor, count: int, *, cover: bool) -> Tensor:
    """int64: the places, row by row, of the ``count`` blocks with the highest scores, equals by position.

    Args:
        scores: ``[block rows, block columns]``.
        cover: as in :func:`strongest_blocks`.
    """
    kept = torch.argsort(scores.flatten(), descending=True, stable=True)[:count]
    if not cover:
        return kept
    weakest_first = torch.arange(kept.numel(), device=kept.device).flip(0)
    grid = (scores.shape[0], scores.shape[1])
    return covering(kept, grid, lambda r, c: _strongest_cover(scores, r, c), lambda: weakest_first)


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
