"""The three parts and the projections are those of the dense matrix, whatever the blocks look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efcn_sparse.subspace.backends import BACKENDS, reference
from efcn_sparse.subspace.plan import MIXED, PURELY_OFF_LOCAL, TIED, make_plan
from tests.subspace.brute_force import CASES, Embedded, parts
from tests.table import Row, rows

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("conv", CASES)
def test_squares(row: Row, conv: str) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device)
    read = BACKENDS[row.backend].squares(case.values, make_plan(*case.ties)).cpu().numpy()
    np.testing.assert_allclose(read, case.true_squares(), rtol=1e-11, atol=1e-20)


@pytest.mark.parametrize("row", rows(torch.float32))
@pytest.mark.parametrize("conv", CASES)
def test_entries_outside_never_count(row: Row, conv: str) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device)
    case.values[torch.tensor(case.outside)] = torch.nan
    read = BACKENDS[row.backend].squares(case.values, make_plan(*case.ties)).cpu().numpy()
    np.testing.assert_allclose(read, case.true_squares(), rtol=1e-11, atol=1e-20)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("conv", CASES)
@pytest.mark.parametrize("tie", [True, False], ids=["cnn", "lcn"])
def test_projections(row: Row, conv: str, tie: bool) -> None:
    case = Embedded(CASES[conv], row.dtype, row.device)
    tied, untied, _ = parts(case.dense, case.entries)
    BACKENDS[row.backend].project(case.values, make_plan(*case.ties), tie)
    expected = case.blocks_of(tied if tie else tied + untied)
    torch.testing.assert_close(case.values, expected, rtol=ROUNDING[row.dtype], atol=1e-2 * ROUNDING[row.dtype])
    assert not case.values[torch.tensor(case.outside)].any()


@pytest.mark.parametrize("conv", CASES)
def test_the_reference_may_take_any_number_of_blocks_at_once(conv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Embedded(CASES[conv])
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 2 * case.values[0].numel())
    np.testing.assert_allclose(reference.squares(case.values, make_plan(*case.ties)), case.true_squares(), rtol=1e-12)
    reference.project(case.values, make_plan(*case.ties), True)
    torch.testing.assert_close(case.values, case.blocks_of(parts(case.dense, case.entries)[0]), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("row", rows(torch.float32))
def test_no_blocks(row: Row) -> None:
    starts, none, maps = (torch.zeros(shape, dtype=torch.int32, device=row.device) for shape in (1, 0, (0, 4, 4)))
    values, plan = torch.empty(0, 4, 4, device=row.device), make_plan(maps, starts, none)
    assert BACKENDS[row.backend].squares(values, plan).tolist() == [0.0, 0.0, 0.0]
    BACKENDS[row.backend].project(values, plan, True)


@pytest.mark.parametrize("row", rows(torch.float32))
@pytest.mark.parametrize("block", [(64, 64), (40, 30), (1, 2000)])
def test_blocks_larger_than_one_task(row: Row, block: tuple[int, int]) -> None:
    """Tied, off-local and mixed classes of many blocks, cut into several tasks each."""
    height, width = block
    maps = torch.arange(4 * height * width, dtype=torch.int32).view(4, height, width)
    maps[1] = -1
    maps[2, :, ::2] = maps[0, :, ::2]
    maps[2, :, 1::6] = -1
    maps[2, :, 3::6] = -2
    class_of_block = torch.arange(231) % 4
    class_of_block[:100] = 1
    starts = torch.nn.functional.pad(torch.bincount(class_of_block).cumsum(0), (1, 0)).to(torch.int32)
    order = torch.argsort(class_of_block, stable=True).to(torch.int32)
    values = torch.randn(231, height, width) + 1.0
    entries = maps[class_of_block].flatten().to(torch.int64)
    numbers = values.double().flatten()
    copied = entries >= 0
    counts = torch.bincount(entries[copied])
    means = torch.bincount(entries[copied], weights=numbers[copied]) / counts.clamp(min=1)
    expected = [
        (counts * means.square()).sum(),
        (numbers[copied] - means[entries[copied]]).square().sum(),
        numbers[entries == -1].square().sum(),
    ]
    plan, values = make_plan(*(array.to(row.device) for array in (maps, starts, order))), values.to(row.device)
    assert plan.kinds.tolist() == [MIXED, PURELY_OFF_LOCAL, MIXED, TIED]
    np.testing.assert_allclose(BACKENDS[row.backend].squares(values, plan).cpu(), expected, rtol=1e-11)
    BACKENDS[row.backend].project(values, plan, True)
    projected = torch.where(copied, means[entries.clamp(min=0)], 0.0).to(torch.float32)
    torch.testing.assert_close(values.cpu().flatten(), projected, rtol=1e-6, atol=1e-7)
