"""A reading is moved by every number that it should see, by the right amount, and by no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efcn_sparse.subspace.backends import BACKENDS
from efcn_sparse.subspace.plan import make_plan
from tests.subspace.brute_force import CASES, OFF_LOCAL, Embedded, blocks
from tests.table import Row, is_slow, rows

MANY_COPIES = [name for name in CASES if name != "one pixel"]


def read(row: Row, case: Embedded, values: torch.Tensor) -> np.ndarray:
    return BACKENDS[row.backend].squares(values, make_plan(*case.ties)).cpu().numpy()


@pytest.mark.parametrize("row", rows(torch.float64))
@pytest.mark.parametrize("conv", CASES)
def test_scaled(row: Row, conv: str) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device)
    np.testing.assert_allclose(read(row, case, 3.0 * case.values), 9.0 * read(row, case, case.values), rtol=1e-12)


@pytest.mark.parametrize("row", rows(torch.float64))
@pytest.mark.parametrize("conv", MANY_COPIES)
def test_every_single_entry(row: Row, conv: str) -> None:
    """One entry of an otherwise tied matrix moved by 1: untied² grows by 1 - 1/n, off-local² by 1."""
    case = Embedded(CASES[conv], row.dtype, row.device, untied=0.0, off=0.0)
    _, maps = blocks(case.dense, case.entries, case.conv.block)
    copies = np.bincount(maps[maps >= 0])
    plan = make_plan(*case.ties)
    chosen = np.random.default_rng(0).choice(maps.size, min(5 if is_slow(row) else 60, maps.size), replace=False)
    for at in chosen:
        values = case.values.clone()
        values.view(-1)[at] += 1.0
        entry = maps.flat[at]
        _, untied, off_local = BACKENDS[row.backend].squares(values, plan).tolist()
        assert untied == pytest.approx(1.0 - 1.0 / copies[entry] if entry >= 0 else 0.0, abs=1e-12)
        assert off_local == (1.0 if entry == OFF_LOCAL else 0.0)


@pytest.mark.parametrize("row", rows(torch.float64))
@pytest.mark.parametrize("conv", MANY_COPIES)
def test_shuffled(row: Row, conv: str) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device, untied=0.0, off=0.0)
    elements = case.values.flatten()
    inside = torch.tensor(~case.outside, device=row.device).flatten().nonzero().squeeze(1)
    shuffled = elements.clone()
    shuffled[inside] = elements[inside[torch.randperm(inside.numel()).to(row.device)]]
    before, after = read(row, case, case.values), read(row, case, shuffled.view_as(case.values))
    assert before.sum() == pytest.approx(after.sum(), rel=1e-12)
    assert before[1] == 0.0 < 0.05 * before[0] < after[1]


@pytest.mark.parametrize("row", rows(torch.float64))
@pytest.mark.parametrize("conv", CASES)
def test_copies_exchanged_among_themselves_change_nothing(row: Row, conv: str) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device)
    _, maps = blocks(case.dense, case.entries, case.conv.block)
    exchanged = case.values.clone()
    for entry in range(maps.max() + 1):
        at = torch.tensor(np.flatnonzero(maps == entry), device=row.device)
        exchanged.view(-1)[at] = case.values.view(-1)[at.flip(0)]
    np.testing.assert_allclose(read(row, case, exchanged), read(row, case, case.values), rtol=1e-12)
