"""SDDMM of up to eight rows goes straight into the stored numbers; with rows of zeros it goes the way of many rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import efcn_sparse as es
from tests.ops import laws
from tests.ops.inputs import LAYOUTS, randn, random_values
from tests.table import BFLOAT16, FLOAT32, FLOAT64, Row, pattern, rows

CPU = rows(where=lambda backend: backend.name == "cpu")
_MANY = 16


def _patterns() -> dict[str, es.BlockPattern]:
    """Among them rows that fill no vector, whole, masked, and in blocks that reach past the last row."""
    found = {name: pattern(name) for name in ("full", "odd-blocks", "masked-ragged", "masked-partly", "tall-blocks")}
    mask = torch.rand((100, 42), generator=torch.Generator().manual_seed(3)) < 0.3
    return {**found, "tall, masked": es.BlockPattern.from_mask(mask, (64, 6))}


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 9])
def test_every_number_of_rows(row: Row, batch: int) -> None:
    for chosen in _patterns().values():
        laws.sddmm_is_dense(row, chosen, batch=batch)


@pytest.mark.parametrize("row", rows(FLOAT32, FLOAT64, BFLOAT16, where=lambda backend: backend.name == "cpu"))
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (-0.3, 0.9)])
def test_rows_of_zeros_change_no_bit(row: Row, alpha: float, beta: float) -> None:
    for name, chosen in _patterns().items():
        for batch in (1, 2) if row.dtype == BFLOAT16 else (1, 3, 8):
            a, b = (LAYOUTS["sliced"](randn(batch, side, row=row, seed=side)) for side in chosen.shape)
            more = (0, 0, 0, _MANY - batch)
            few, many = (
                random_values(chosen, row) if beta else torch.full(chosen.values_shape, torch.nan, dtype=row.dtype)
                for _ in range(2)
            )
            es.sddmm(a, b, chosen, alpha=alpha, beta=beta, out=few, backend=row.backend)
            es.sddmm(F.pad(a, more), F.pad(b, more), chosen, alpha=alpha, beta=beta, out=many, backend=row.backend)
            assert torch.equal(few, many), (name, batch)


@pytest.mark.parametrize("row", rows(BFLOAT16, where=lambda backend: backend.name == "cpu"))
def test_bf16_results_are_rounded_as_torch_rounds(row: Row) -> None:
    """Ties to even; infinities, NaN, subnormal numbers and those that round to infinity."""
    chosen = es.BlockPattern.dense((1, 64), (1, 64))
    numbers = torch.cat(
        [torch.randn(56), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-39, 3.39e38, 1.0])]
    )
    old = torch.arange(64).remainder(7).view(chosen.values_shape).to(torch.bfloat16)
    old[..., -8:] = 0  # what is added to a subnormal number would hide it
    values = old.clone()
    es.sddmm(
        torch.ones(1, 1, dtype=row.dtype), numbers.to(row.dtype)[None], chosen, beta=0.5, out=values, backend="cpu"
    )
    exact = numbers.to(row.dtype).float() + 0.5 * old.flatten().float()
    assert torch.equal(values.flatten().nan_to_num(nan=7.0), exact.to(row.dtype).nan_to_num(nan=7.0))
