"""Every size of a register tile of the CPU kernels: rows and vectors of it, its last columns, panels that are added."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests.ops import laws
from tests.ops.inputs import randn
from tests.table import BFLOAT16, FLOAT32, Row, rows

CPU = rows(BFLOAT16, FLOAT32, where=lambda backend: backend.name == "cpu")
SIDES = (1, 15, 16, 17, 32, 40, 48, 64, 65, 112, 130)
BATCHES = (*range(1, 26), 31, 47, 49, 63, 64, 79)


def _pattern(height: int, width: int, rows: int, cols: int) -> BlockPattern:
    generator = torch.Generator().manual_seed(height + width)
    return BlockPattern.random((rows * height, cols * width), (height, width), 0.6, generator)


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("side", SIDES)
def test_every_width(row: Row, side: int) -> None:
    for width in (2, 9, 16):
        for batch in (7, 26):
            laws.spmm_is_dense(row, _pattern(side, width, 3, 4), batch=batch, transpose=False, bias=True)
            laws.spmm_is_dense(row, _pattern(width, side, 4, 3), batch=batch, transpose=True, bias=False)
            laws.sddmm_is_dense(row, _pattern(side, width, 3, 4), batch=batch)
            laws.sddmm_is_dense(row, _pattern(width, side, 4, 3), batch=batch)


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_height(row: Row, batch: int) -> None:
    for side in (8, 24, 36, 52):  # one to four vectors
        laws.spmm_is_dense(row, _pattern(side, 8, 3, 5), batch=batch, transpose=False, bias=True)
        laws.sddmm_is_dense(row, _pattern(batch, side, 2, 3), batch=33)


@pytest.mark.parametrize("row", CPU)
def test_runs_of_every_length(row: Row) -> None:
    """One to seven blocks side by side in one block row, so that what a tile of 32 leaves over differs."""
    mask = torch.zeros(3, 36, dtype=torch.bool)
    begin = 0
    for length in range(1, 8):
        mask[0::2, begin : begin + length] = True
        begin += length + 1
    pattern = BlockPattern.from_mask(mask[:, :35], (20, 50), shape=(57, 1748))
    for batch in (31, 67):
        laws.spmm_is_dense(row, pattern, batch=batch, transpose=False, bias=True)
        laws.spmm_is_dense(row, pattern.transposed(), batch=batch, transpose=True, bias=False)


@pytest.mark.parametrize("row", CPU)
def test_beside_products_of_torch(row: Row) -> None:
    """Torch's own products set tile registers of the same thread to other sizes."""
    pattern = _pattern(32, 32, 4, 4)
    x, values = randn(64, 128, row=row, seed=1), randn(*pattern.values_shape, row=row, seed=2)
    before = es.spmm(x, values, pattern, backend="cpu")
    for size in (16, 48, 100):
        dense = randn(size, size, row=row, seed=3)
        torch.mm(dense, dense)
        assert torch.equal(es.spmm(x, values, pattern, backend="cpu"), before)


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("side", [16, 64, 112])
def test_rows_longer_than_a_panel(row: Row, side: int) -> None:
    for width in (24, 6000):
        long = BlockPattern.dense((side, 6000), (side, width))
        for batch in (5, 29):
            laws.spmm_is_dense(row, long, batch=batch, transpose=False, bias=True)
            laws.spmm_is_dense(row, long.transposed(), batch=batch, transpose=True, bias=False)


@pytest.mark.parametrize("row", CPU)
def test_block_rows_side_by_side(row: Row) -> None:
    """Some are empty, the last one is ragged, and there are more than one task takes."""
    mask = torch.rand(70, 9, generator=torch.Generator().manual_seed(5)) < 0.3
    mask[::7] = False
    pattern = BlockPattern.from_mask(mask, (8, 16), shape=(557, 141))
    for transpose in (False, True):
        laws.spmm_is_dense(row, pattern, batch=130, transpose=transpose, bias=True)


@pytest.mark.parametrize("row", CPU)
def test_what_is_not_finite_is_stored_as_such(row: Row) -> None:
    pattern = BlockPattern.dense((40, 32), (20, 16))
    x, values = randn(6, 32, row=row, seed=1), randn(*pattern.values_shape, row=row, seed=2).abs() + 0.1
    x[1, 3], x[2], x[3, 7], x[4] = float("nan"), float("inf"), float("-inf"), torch.finfo(row.dtype).max
    y = es.spmm(x, values, pattern, backend="cpu")
    expected = es.spmm(x, values, pattern, backend="reference")
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[2:5], expected[2:5])
    assert not y[[0, 5]].isnan().any()
    assert bool(y[4].isinf().all())
