"""The row-wise and the column-wise walk visit the same blocks, and transposing swaps them."""

from __future__ import annotations

import pytest
import torch

from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import PATTERNS, pattern


def _walk(starts: torch.Tensor, neighbors: torch.Tensor) -> list[tuple[int, int]]:
    pairs = []
    for line in range(starts.numel() - 1):
        pairs += [(line, int(neighbors[k])) for k in range(int(starts[line]), int(starts[line + 1]))]
    return pairs


@pytest.mark.parametrize("name", PATTERNS)
def test_both_walks_visit_every_block_once(name: str) -> None:
    p = pattern(name)
    by_row = _walk(p.crow_indices, p.col_indices)
    by_column = [(row, col) for col, row in _walk(p.ccol_indices, p.row_indices)]
    assert by_row == sorted(set(by_row))
    assert by_column == sorted(by_row, key=lambda pair: (pair[1], pair[0]))
    assert [by_row[k] for k in p.block_order.tolist()] == by_column
    assert p.rows_of_blocks().tolist() == [row for row, _ in by_row]


@pytest.mark.parametrize("name", PATTERNS)
def test_transposed(name: str) -> None:
    p = pattern(name)
    t = p.transposed()
    assert (t.shape, t.block_shape) == (p.shape[::-1], p.block_shape[::-1])
    assert torch.equal(t.to_mask(), p.to_mask().T)
    assert t.transposed() == p
    values = torch.randn(p.values_shape)
    turned = values[p.block_order.long()].transpose(1, 2)
    assert torch.equal(t.to_dense(turned), p.to_dense(values).T)


@pytest.mark.parametrize("name", PATTERNS)
def test_counts(name: str) -> None:
    p, support = pattern(name), oracle.support_of(pattern(name))
    assert p.nnz == int(support.sum())
    assert p.values_shape == tuple(support.shape)
    assert p.density == p.nnz_blocks / (p.grid[0] * p.grid[1])
    assert p.is_ragged == (p.shape[0] % p.block_shape[0] > 0 or p.shape[1] % p.block_shape[1] > 0)
    given = p.support_of_blocks()
    assert bool(support.all()) if given is None else torch.equal(given, support)


def test_masks_that_reach_past_the_edge_count_inside_only() -> None:
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = False
    index = torch.tensor([0, 0, -1, 0])
    p = BlockPattern.from_bsr([0, 2, 4], [0, 1, 0, 1], (5, 6), (4, 4), mask_index=index, masks=masks)
    assert p.nnz == int(p.to_mask().sum()) == 15 + 7 + 4 + 1


def test_extents_of_matrices_longer_than_int32() -> None:
    starts = torch.arange(3073).clamp(max=3072)
    p = BlockPattern.from_bsr(starts, torch.zeros(3072, dtype=torch.int64), (3 * 2**30 - 1, 4), (2**20, 4))
    heights, widths = p.block_extents()
    assert (heights[0].item(), heights[-1].item(), widths.unique().tolist()) == (2**20, 2**20 - 1, [4])
    assert p.nnz == p.transposed().nnz == 4 * (3 * 2**30 - 1)
