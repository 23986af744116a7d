"""Law 1, with its error bound: the operations and their gradients are those of the dense matrix in fp64."""

from __future__ import annotations

import pytest

from efcn_sparse import BlockPattern
from tests.ops import laws
from tests.table import BATCHES, BFLOAT16, EMPTY_SHAPES, FLOAT32, FLOAT64, PATTERNS, Row, cases, pattern, rows

MIXED = ("square", "ragged", "masked-ragged", "odd-blocks", "mid-blocks", "entries")
LONG = ("square", "ragged-long-rows", "long-rows", "odd-blocks", "masked-ragged", "unbalanced", "tall-blocks")


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("name", PATTERNS)
def test_spmm_is_the_dense_product(row: Row, name: str) -> None:
    for transpose in (False, True):
        laws.spmm_is_dense(row, pattern(name, row.device), transpose=transpose, bias=transpose)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("name", PATTERNS)
def test_sddmm_is_the_dense_product(row: Row, name: str) -> None:
    laws.sddmm_is_dense(row, pattern(name, row.device))


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_gradients_are_the_dense_gradients(row: Row, name: str) -> None:
    for transpose in (False, True):
        laws.gradients_are_dense(row, pattern(name, row.device), transpose=transpose)


@pytest.mark.parametrize(
    ("row", "name"),
    cases(["square", "ragged", "masked-ragged", "odd-blocks", "mid-blocks", "entries"], FLOAT64, FLOAT32, BFLOAT16),
)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_size(row: Row, name: str, batch: int) -> None:
    laws.spmm_is_dense(row, pattern(name, row.device), batch=batch, transpose=False, bias=True)
    laws.spmm_is_dense(row, pattern(name, row.device), batch=batch, transpose=True, bias=False)
    laws.sddmm_is_dense(row, pattern(name, row.device), batch=batch)


@pytest.mark.parametrize(
    ("row", "name"),
    cases(LONG, FLOAT32, BFLOAT16),
)
def test_large_batches(row: Row, name: str) -> None:
    laws.spmm_is_dense(row, pattern(name, row.device), batch=1037, transpose=False, bias=True)
    laws.spmm_is_dense(row, pattern(name, row.device), batch=1037, transpose=True, bias=False)
    laws.sddmm_is_dense(row, pattern(name, row.device), batch=1037)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("shape", EMPTY_SHAPES)
@pytest.mark.parametrize("batch", [0, 3])
def test_sides_without_features(row: Row, shape: tuple[int, int], batch: int) -> None:
    nothing = BlockPattern.dense(shape, (4, 4))
    for transpose in (False, True):
        laws.spmm_is_dense(row, nothing, batch=batch, transpose=transpose, bias=True)
        laws.gradients_are_dense(row, nothing, batch=batch, transpose=transpose)
    laws.sddmm_is_dense(row, nothing, batch=batch)
