"""Law 7: ‖aᵀb‖² over all entries is Σ (aaᵀ)∘(bbᵀ), so the gradient outside the support is known without forming it."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests import oracle
from tests.ops.inputs import randn
from tests.table import FLOAT32, FLOAT64, PATTERNS, Row, pattern, rows


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32))
@pytest.mark.parametrize("name", PATTERNS)
def test_energy_outside_the_support(row: Row, name: str) -> None:
    p = pattern(name, row.device)
    a, b = randn(9, p.shape[0], row=row, seed=1), randn(9, p.shape[1], row=row, seed=2)
    everything = float(((a @ a.T).double() * (b @ b.T).double()).sum())
    stored = float(es.sddmm(a, b, p, backend=row.backend).double().square().sum())
    inside = oracle.dense(torch.ones(p.values_shape), p).bool().to(row.device)
    outside = float((a.double().T @ b.double()).masked_fill(inside, 0).square().sum())
    assert everything - stored == pytest.approx(outside, rel=1e-5, abs=1e-5 * everything)
