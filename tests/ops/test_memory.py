"""Nothing is read that was not written or given, and nothing is written outside the result.

Allocations are filled with NaN (``torch.utils.deterministic.fill_uninitialized_memory``), and inputs and outputs lie
inside larger buffers of sentinels.
"""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests import oracle
from tests.ops import laws
from tests.ops.inputs import randn, random_values, within
from tests.oracle import assert_accurate
from tests.table import BACKENDS, PATTERNS, Row, cases, pattern, rows

SENTINEL = 77.0
PARTIAL = ("masked", "masked-ragged", "masked-partly", "ragged", "larger-than-the-matrix")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("row", rows())
def test_the_poison_is_there(row: Row) -> None:
    fresh = (torch.empty(64, dtype=row.dtype, device=row.device), randn(3, row=row, seed=1).new_empty(5, 5))
    assert all(bool(memory.isnan().all()) for memory in fresh)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_fresh_memory_is_written_before_it_is_read(row: Row, name: str) -> None:
    laws.spmm_is_dense(row, pattern(name, row.device), batch=5, transpose=False, bias=True)
    laws.spmm_is_dense(row, pattern(name, row.device), batch=5, transpose=True, bias=False)
    laws.sddmm_is_dense(row, pattern(name, row.device), batch=5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("batch", [1, 301])
def test_scratch_memory_of_split_batches(row: Row, batch: int) -> None:
    for name in ("masked-ragged", "mid-blocks", "unbalanced", "tall-blocks"):
        laws.spmm_is_dense(row, pattern(name, row.device), batch=batch, transpose=False, bias=True)
        laws.spmm_is_dense(row, pattern(name, row.device), batch=batch, transpose=True, bias=True)
        laws.sddmm_is_dense(row, pattern(name, row.device), batch=batch)


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_guard_bands_stay_and_do_not_leak_in(row: Row, name: str, beta: float) -> None:
    p = pattern(name, row.device)
    a, b = (within(randn(6, side, row=row, seed=side))[0] for side in p.shape)
    values = within(random_values(p, row))[0]
    for transpose, x, like in ((False, b, a), (True, a, b)):
        bias, old = within(randn(like.shape[1], row=row, seed=3))[0], randn(*like.shape, row=row, seed=4)
        out, buffer = within(old, SENTINEL)
        es.spmm(x, values, p, transpose=transpose, bias=bias, out=out, beta=beta, backend=row.backend)
        _assert_guards_stay(buffer, out.numel())
        result = oracle.spmm(x, values, p, transpose=transpose, bias=bias)
        assert_accurate(out, oracle.accumulated(result, 1.0, beta, old), "spmm")
    old = random_values(p, row, seed=5, outside=0.0)
    out, buffer = within(old, SENTINEL)
    es.sddmm(a, b, p, out=out, beta=beta, backend=row.backend)
    _assert_guards_stay(buffer, out.numel())
    assert_accurate(out, oracle.accumulated(oracle.sddmm(a, b, p), 1.0, beta, old), "sddmm")


def _assert_guards_stay(buffer: torch.Tensor, inner: int) -> None:
    margin = (buffer.numel() - inner) // 2
    assert bool((buffer[:margin] == SENTINEL).all()), "written before the start of out"
    assert bool((buffer[margin + inner :] == SENTINEL).all()), "written past the end of out"


@pytest.mark.parametrize(("row", "name"), cases(PARTIAL))
@pytest.mark.parametrize("outside", [float("nan"), float("inf")])
def test_values_outside_the_support_are_not_read(row: Row, name: str, outside: float) -> None:
    p = pattern(name, row.device)
    x, dy = randn(6, p.shape[1], row=row, seed=1), randn(6, p.shape[0], row=row, seed=2)
    zeros, poison = (random_values(p, row, outside=number) for number in (0.0, outside))
    for transpose, matrix in ((False, x), (True, dy)):
        clean, same = (
            es.spmm(matrix, values, p, transpose=transpose, backend=row.backend) for values in (zeros, poison)
        )
        assert torch.equal(clean, same)


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_inputs_stay_as_they_are(row: Row, name: str) -> None:
    p = pattern(name, row.device)
    a, b = randn(6, p.shape[0], row=row, seed=1), randn(6, p.shape[1], row=row, seed=2)
    values, structure = random_values(p, row), [tensor.clone() for tensor in p.structure]
    inputs = (a, b, values)
    before = [tensor.clone() for tensor in inputs]
    es.spmm(b, values, p, backend=row.backend)
    es.spmm(a, values, p, transpose=True, backend=row.backend)
    es.sddmm(a, b, p, backend=row.backend)
    assert all(torch.equal(now.nan_to_num(), then.nan_to_num()) for now, then in zip(inputs, before, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(p.structure, structure, strict=True))


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_features_that_no_block_needs_do_not_count(row: Row, name: str) -> None:
    """A backend that multiplies zeros may let through what is not finite, as the dense product does."""
    multiplies_zeros = any(backend.name == row.backend and backend.multiplies_zeros for backend in BACKENDS)
    poison = 1e4 if multiplies_zeros else float("nan")
    p = pattern(name, row.device)
    x, values = randn(5, p.shape[1], row=row, seed=1), random_values(p, row)
    clean = es.spmm(x, values, p, backend=row.backend)
    for col in {0, p.grid[1] // 2, p.grid[1] - 1}:
        spoilt = x.clone()
        spoilt[:, col * p.block_shape[1] : (col + 1) * p.block_shape[1]] = poison
        y = es.spmm(spoilt, values, p, backend=row.backend)
        users = set(p.row_indices[p.ccol_indices[col] : p.ccol_indices[col + 1]].tolist())
        others = [i for i in range(p.shape[0]) if i // p.block_shape[0] not in users]
        assert torch.equal(y[:, others], clean[:, others])


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
@pytest.mark.parametrize("transpose", [False, True])
def test_samples_do_not_mix(row: Row, name: str, transpose: bool) -> None:
    p = pattern(name, row.device)
    x, values = randn(7, p.shape[0 if transpose else 1], row=row, seed=1), random_values(p, row)
    clean = es.spmm(x, values, p, transpose=transpose, backend=row.backend)
    x[3] = float("nan")
    y = es.spmm(x, values, p, transpose=transpose, backend=row.backend)
    assert torch.equal(y[[0, 1, 2, 4, 5, 6]], clean[[0, 1, 2, 4, 5, 6]])


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_the_gradient_of_a_block_reads_its_own_features(row: Row, name: str) -> None:
    p = pattern(name, row.device)
    a, b = randn(5, p.shape[0], row=row, seed=1), randn(5, p.shape[1], row=row, seed=2)
    clean = es.sddmm(a, b, p, backend=row.backend)
    a[:, : p.block_shape[0]] = float("nan")
    b[:, -1] = float("nan")
    touched = (p.rows_of_blocks() == 0) | (p.col_indices == p.grid[1] - 1)
    assert torch.equal(es.sddmm(a, b, p, backend=row.backend)[~touched], clean[~touched])
