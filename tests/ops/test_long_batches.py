"""SDDMM of batches that do not fit the caches, which the compiled kernel sums in parts of about 2 MiB."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests import oracle
from tests.ops.inputs import randn, random_values
from tests.table import FLOAT32, FLOAT64, Row, pattern, rows

PATHS = ("square", "ragged", "masked-ragged", "odd-blocks", "mid-blocks", "entries", "unbalanced", "empty")


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, where=lambda backend: backend.name == "cpu"))
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("over", [3, -200], ids=["a few rows over", "two parts"])
def test_sums_of_parts(row: Row, name: str, over: int, poisoned: None) -> None:
    layout = pattern(name, row.device)
    batch = 2 * (1 << 21) // (max(layout.shape) * row.dtype.itemsize) // 256 * 256 + over
    assert batch > 1024  # at least 512 rows make a part
    a, b = (randn(batch, side, row=row, seed=side) for side in layout.shape)
    values = random_values(layout, row).requires_grad_()
    bias = randn(layout.shape[0], row=row, seed=2).requires_grad_()
    y = es.spmm(b, values, layout, bias=bias, backend=row.backend)
    dbias, dvalues = torch.autograd.grad(y, (bias, values), a)
    oracle.assert_accurate(dvalues, oracle.sddmm(a, b, layout), "dvalues")
    assert torch.equal(dbias, torch.ops.efcn_sparse_cpu.column_sums(a))  # the same sums, bit for bit
    old = random_values(layout, row, seed=5, outside=0.0)
    out = es.sddmm(a, b, layout, out=old.clone(), alpha=0.5, beta=0.5, backend=row.backend)
    oracle.assert_accurate(out, oracle.accumulated(oracle.sddmm(a, b, layout), 0.5, 0.5, old), "added")
