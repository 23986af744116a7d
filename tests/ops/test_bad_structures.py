"""Arrays that are no pattern's are refused by every operator and backend: a kernel would follow them anywhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import efcn_sparse as es
from efcn_sparse.pattern import Structure
from tests.ops.inputs import randn, random_values
from tests.table import FLOAT32, Row, pattern, rows

OPS = torch.ops.efcn_sparse
Spoil = Callable[[Tensor], Tensor]


def _written(at: int, number: int) -> Spoil:
    def write(index: Tensor) -> Tensor:
        spoilt = index.clone()
        spoilt.view(-1)[at] = number
        return spoilt

    return write


ORDERED = "must list the blocks of crow_indices and col_indices column by column"
SPOILT: dict[str, tuple[str, Spoil, str]] = {
    "col far out": ("col_indices", _written(0, 10**7), r"col_indices must lie in \[0, 8\), got values from"),
    "col below zero": ("col_indices", _written(3, -1), r"col_indices must lie in \[0, 8\), got values from -1"),
    "col too short": ("col_indices", lambda t: t[:-1].clone(), "crow_indices must run from 0 to the"),
    "crow past the end": ("crow_indices", _written(-1, 10**6), "crow_indices must run from 0 to the"),
    "crow falls": ("crow_indices", _written(2, 10**6), "crow_indices must not decrease, got 1000000 then"),
    "crow below zero": ("crow_indices", _written(1, -5), "crow_indices must not decrease, got 0 then -5 at row 0"),
    "crow too short": ("crow_indices", lambda t: t[:-1].clone(), r"crow_indices must be \[5\], got \[4\]"),
    "ccol past the end": ("ccol_indices", _written(-1, 10**6), f"ccol_indices {ORDERED}"),
    "ccol too short": ("ccol_indices", lambda t: t[:-1].clone(), f"ccol_indices {ORDERED}"),
    "row far out": ("row_indices", _written(0, 10**7), f"row_indices {ORDERED}"),
    "order far out": ("block_order", _written(0, 10**7), f"block_order {ORDERED}"),
    "order twice": ("block_order", lambda t: torch.zeros_like(t), f"block_order {ORDERED}"),
    "mask far out": ("mask_index", _written(0, 10**7), r"mask_index must lie in \[-1, \d+\), got values from"),
    "mask index too short": ("mask_index", lambda t: t[:3].clone(), r"mask_index must be \[\d+\], got \[3\]"),
    "masks of other blocks": ("masks", lambda t: t.mT.contiguous(), r"masks must be \[n, 8, 6\], got"),
    "masks gone": ("masks", lambda t: t[:0].clone(), r"mask_index must lie in \[-1, 0\), got values from"),
    "int64": ("col_indices", lambda t: t.long(), "col_indices must be torch.int32, got torch.int64"),
    "strided": ("row_indices", lambda t: t.repeat_interleave(2)[::2], "row_indices must be a contiguous dense tensor"),
}


def _call(row: Row, operator: str, structure: list[Tensor], values: Tensor, shape: tuple[int, int]) -> None:
    x, dy = randn(3, 43, row=row, seed=1), randn(3, 29, row=row, seed=2)
    if operator == "spmm":
        OPS.spmm(x, values, None, structure, shape, False, row.backend)
    elif operator == "transposed":
        OPS.spmm_(x, dy, values, None, structure, shape, True, 1.0, 0.0, row.backend)
    elif operator == "sddmm":
        OPS.sddmm(dy, x, structure, shape, values.shape[1:], row.backend)
    else:
        OPS.sddmm_(values, dy, x, structure, shape, 1.0, 0.0, row.backend)


@pytest.mark.parametrize("row", rows(FLOAT32))
@pytest.mark.parametrize("operator", ["spmm", "transposed", "sddmm", "into values"])
def test_refused(row: Row, operator: str) -> None:
    p = pattern("masked-ragged", row.device)
    for field, spoil, message in SPOILT.values():
        structure = p.structure._replace(**{field: spoil(getattr(p.structure, field))})
        with pytest.raises((ValueError, TypeError), match=message):
            _call(row, operator, list(structure), random_values(p, row), p.shape)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_sides_and_sizes_that_do_not_fit(row: Row) -> None:
    p = pattern("masked-ragged", row.device)
    values, structure = random_values(p, row), list(p.structure)
    x = randn(3, 43, row=row, seed=1)
    with pytest.raises(ValueError, match=r"block_shape must be two integers of at least 1, got \(0, 6\)"):
        OPS.spmm(x, values[:, :0], None, structure, p.shape, False, row.backend)
    with pytest.raises(ValueError, match=r"block_shape must be two integers of at least 1, got \(8, 0\)"):
        OPS.sddmm(x[:, :29], x, structure, p.shape, (8, 0), row.backend)
    with pytest.raises(ValueError, match=r"values must hold \d+ blocks, got 2"):
        OPS.spmm(x, values[:2], None, structure, p.shape, False, row.backend)
    with pytest.raises(ValueError, match=r"crow_indices must be \[101\], got \[5\]"):
        OPS.spmm(x, values, None, structure, (800, 43), False, row.backend)
    for given in (x[:, :40], x[0], x.T):
        with pytest.raises(ValueError, match=r"x must be \[\d+, 43\], got"):
            OPS.spmm(given, values, None, structure, p.shape, False, row.backend)
    with pytest.raises(ValueError, match=r"b must be \[3, 43\], got \[2, 43\]"):
        OPS.sddmm(x[:, :29], x[:2], structure, p.shape, p.block_shape, row.backend)
    with pytest.raises(ValueError, match=r"bias must be \[29\], got \[28\]"):
        OPS.spmm(x, values, x[0, :28], structure, p.shape, False, row.backend)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_what_is_written_after_the_first_look_is_seen(row: Row) -> None:
    p = pattern("square", row.device)
    structure = Structure(*(part.clone() for part in p.structure))
    x, values = randn(3, p.shape[1], row=row, seed=1), random_values(p, row)
    expected = es.spmm(x, values, p, backend=row.backend)
    for _ in range(2):
        assert torch.equal(OPS.spmm(x, values, None, list(structure), p.shape, False, row.backend), expected)
    structure.col_indices[-1] = 10**7
    with pytest.raises(ValueError, match=r"col_indices must lie in \[0, 3\)"):
        OPS.spmm(x, values, None, list(structure), p.shape, False, row.backend)
    structure.col_indices.copy_(p.col_indices)
    assert torch.equal(OPS.spmm(x, values, None, list(structure), p.shape, False, row.backend), expected)


BEHIND = {  # what is written through NumPy moves no version counter; the first message is of the kernels
    "col_indices": (0, 10**7, False, r"col_indices must lie in \[0, 8\)"),
    "crow_indices": (2, -(2**31), False, r"crow_indices must ascend from 0 to \d+"),
    "ccol_indices": (-1, 10**6, True, r"ccol_indices must ascend from 0 to \d+"),
    "row_indices": (3, -1, True, r"row_indices must lie in \[0, 4\)"),
    "block_order": (-1, 2**31 - 1, True, r"block_order must lie in \[0, \d+\)"),
    "mask_index": (0, -2, False, r"mask_index must lie in \[-1, \d+\)"),
}


@pytest.mark.skipif(not es.extension_status().available, reason="the compiled kernels are not here")
@pytest.mark.parametrize("field", BEHIND)
def test_what_is_written_past_the_version_counter_stays_within_memory(field: str) -> None:
    """The numbers may be wrong then; what the compiled kernels read and write is theirs."""
    at, number, transpose, message = BEHIND[field]
    p = pattern("masked-ragged")
    structure = Structure(*(part.clone() for part in p.structure))
    x, dy, values = torch.randn(3, 43), torch.randn(3, 29), torch.randn(p.values_shape)
    left, inner = dy if transpose else x, torch.ops.efcn_sparse_cpu
    calls = [
        lambda: OPS.spmm(left, values, None, list(structure), p.shape, transpose, "cpu"),
        lambda: inner.spmm(torch.empty_like(x if transpose else dy), left, values, None, list(structure), p.shape,
                           transpose, 1.0, 0.0),
    ]  # fmt: skip
    if not transpose:
        calls.append(lambda: OPS.sddmm(dy, x, list(structure), p.shape, p.block_shape, "cpu"))
    for call in calls:
        call()
    getattr(structure, field).numpy()[at] = number
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_look_is_not_taken_for_another_array() -> None:
    """Memory is used again: arrays that came to lie where checked ones lay are looked at."""
    p = pattern("square")
    x, values = torch.randn(3, p.shape[1]), torch.randn(p.values_shape)
    for _ in range(20):
        structure = [part.clone() for part in p.structure]
        OPS.spmm(x, values, None, structure, p.shape, False, "auto")
        del structure
        spoilt = [part.clone() for part in p.structure]
        torch.from_numpy(spoilt[1].numpy())[:] = 10**6  # past the version counter, before it is first seen
        with pytest.raises(ValueError, match="col_indices must lie in"):
            OPS.spmm(x, values, None, spoilt, p.shape, False, "auto")


def test_a_look_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pattern("square")
    x, values = torch.randn(3, p.shape[1], requires_grad=True), torch.randn(p.values_shape, requires_grad=True)
    es.spmm(x, values, p).sum().backward()
    looks: list[object] = []
    monkeypatch.setattr("efcn_sparse.ops.checks.check_structure", lambda *given: looks.append(given))
    es.spmm(x, values, p).sum().backward()
    assert looks == []


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_alpha_zero_reads_no_operand(row: Row) -> None:
    p = pattern("masked-ragged", row.device)
    x, dy = torch.full((3, p.shape[1]), float("inf"), device=row.device), randn(3, p.shape[0], row=row, seed=1)
    values = random_values(p, row, outside=0.0)
    for beta in (0.0, 2.0):
        out = dy.clone()
        es.spmm(x, values, p, out=out, alpha=0.0, beta=beta, backend=row.backend)
        assert torch.equal(out, beta * dy)
        stored = values.clone()
        es.sddmm(dy, x, p, out=stored, alpha=0.0, beta=beta, backend=row.backend)
        assert torch.equal(stored, beta * values)
