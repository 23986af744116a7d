"""One to nine rows: up to eight have kernels of their own, which read the weights as they are stored."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.ops import laws
from tests.ops.inputs import LAYOUTS, randn, random_values
from tests.oracle import assert_accurate
from tests.table import FLOAT16, FLOAT32, FLOAT64, Row, pattern, rows

CPU = rows(where=lambda backend: backend.name == "cpu")
# every width of vectors, columns that fill none, and rows that fill none
BLOCKS = ((16, 16), (7, 64), (40, 24), (5, 4), (33, 19), (16, 6), (11, 9))


def _ragged(block_shape: tuple[int, int]) -> BlockPattern:
    height, width = block_shape
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(height)) < 0.5
    mask[2] = False
    return BlockPattern.from_mask(mask, block_shape, shape=(5 * height - height // 3, 7 * width - width // 2))


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("batch", range(1, 10))
def test_every_number_of_rows(row: Row, batch: int) -> None:
    for number, block_shape in enumerate(BLOCKS):
        chosen = _ragged(block_shape if number % 2 else block_shape[::-1])
        laws.spmm_is_dense(row, chosen, batch=batch, transpose=(number + batch) % 2 == 0, bias=True)
    for name in ("masked-ragged", "masked-partly", "tall-blocks"):
        laws.spmm_is_dense(row, pattern(name), batch=batch, transpose=batch % 2 == 0, bias=False)


@pytest.mark.parametrize("row", rows(FLOAT32, FLOAT64, where=lambda backend: backend.name == "cpu"))
def test_a_row_does_not_depend_on_the_others(row: Row) -> None:
    chosen = _ragged((24, 16))
    x, values = randn(8, chosen.shape[1], row=row, seed=1), random_values(chosen, row)
    together = es.spmm(x, values, chosen, backend="cpu")
    for count in (1, 2, 3, 5):
        assert torch.equal(es.spmm(x[:count], values, chosen, backend="cpu"), together[:count])


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("layout", ["sliced", "transposed", "every-other-row"])
def test_any_strides_and_a_result_that_is_added_to(row: Row, layout: str) -> None:
    chosen = _ragged((16, 16))
    x, values = LAYOUTS[layout](randn(3, chosen.shape[1], row=row, seed=1)), random_values(chosen, row)
    before = randn(3, chosen.shape[0], row=row, seed=2)
    out = before.clone()
    es.spmm(x, values, chosen, alpha=0.5, beta=2.0, out=out, backend="cpu")
    assert_accurate(out, oracle.accumulated(oracle.spmm(x, values, chosen), 0.5, 2.0, before), layout)


@pytest.mark.parametrize("row", rows(FLOAT16, where=lambda backend: backend.name == "cpu"))
def test_float16_of_every_size(row: Row) -> None:
    """What is stored comes out, one number of each block at a time: normal, subnormal, zero; and infinity."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = numbers[numbers.isfinite()].view(-1, 1, 16)
    rows_of_one = torch.eye(len(finite), dtype=torch.bool)
    diagonal = BlockPattern.from_mask(rows_of_one, (1, 16), shape=(len(finite), finite.numel()))
    for place in (0, 5, 15):
        x = torch.zeros(16, dtype=torch.float16).index_fill(0, torch.tensor(place), 1.0).repeat(1, len(finite))
        assert torch.equal(es.spmm(x, finite, diagonal, backend=row.backend)[0], finite[:, 0, place])
    one = BlockPattern.dense((1, 16), (1, 16))
    x, infinite = torch.ones(1, 16, dtype=row.dtype), torch.full((1, 1, 16), float("inf"), dtype=row.dtype)
    assert es.spmm(x, infinite, one, backend=row.backend).item() == float("inf")
    assert es.spmm(x, infinite * 0, one, backend=row.backend).isnan().all()
