"""The laws of the two operations as checks on a backend.

Each takes a row of the table and a pattern, and raises AssertionError where the law is broken. The test files run
them over the table; ``test_mutations`` runs the same functions over broken backends.
"""

from __future__ import annotations

import torch

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.ops.inputs import randn, random_values
from tests.oracle import assert_accurate
from tests.table import Row


def spmm_is_dense(row: Row, pattern: BlockPattern, *, batch: int = 11, transpose: bool, bias: bool) -> None:
    """Law 1: ``spmm == x @ Wᵀ + bias``, or ``x @ W + bias``."""
    pattern = pattern.to(row.device)
    out_features, in_features = pattern.shape[::-1] if transpose else pattern.shape
    x, values = randn(batch, in_features, row=row, seed=1), random_values(pattern, row)
    shift = randn(out_features, row=row, seed=2) if bias else None
    y = es.spmm(x, values, pattern, transpose=transpose, bias=shift, backend=row.backend)
    assert y.dtype == row.dtype
    assert y.is_contiguous()
    assert_accurate(y, oracle.spmm(x, values, pattern, transpose=transpose, bias=shift), "spmm")


def sddmm_is_dense(row: Row, pattern: BlockPattern, *, batch: int = 11) -> None:
    """Law 1: ``sddmm == aᵀ b`` at the stored blocks, zero outside the support."""
    pattern = pattern.to(row.device)
    a, b = randn(batch, pattern.shape[0], row=row, seed=3), randn(batch, pattern.shape[1], row=row, seed=4)
    values = es.sddmm(a, b, pattern, backend=row.backend)
    assert values.dtype == row.dtype
    assert values.is_contiguous()
    assert_accurate(values, oracle.sddmm(a, b, pattern), "sddmm")


def gradients_are_dense(row: Row, pattern: BlockPattern, *, batch: int = 11, transpose: bool) -> None:
    """The gradients of x, values and bias under a random dy are those of the dense matrix."""
    pattern = pattern.to(row.device)
    out_features, in_features = pattern.shape[::-1] if transpose else pattern.shape
    x, values = randn(batch, in_features, row=row, seed=1), random_values(pattern, row)
    bias, dy = randn(out_features, row=row, seed=2), randn(batch, out_features, row=row, seed=5)
    inputs = [tensor.requires_grad_() for tensor in (x, values, bias)]
    y = es.spmm(x, values, pattern, transpose=transpose, bias=bias, backend=row.backend)
    dx, dvalues, dbias = torch.autograd.grad(y, inputs, dy)
    assert_accurate(dx, oracle.spmm(dy, values, pattern, transpose=not transpose), "dx")
    a, b = (x, dy) if transpose else (dy, x)
    assert_accurate(dvalues, oracle.sddmm(a, b, pattern), "dvalues")
    assert_accurate(dbias, oracle.column_sums(dy), "dbias")


def operations_are_adjoint(row: Row, pattern: BlockPattern, *, batch: int = 11) -> None:
    """Law 2: ⟨sddmm(a, b), v⟩ = ⟨a, spmm(b, v)⟩ = ⟨spmm(a, v, transposed), b⟩."""
    pattern = pattern.to(row.device)
    a, b = randn(batch, pattern.shape[0], row=row, seed=6), randn(batch, pattern.shape[1], row=row, seed=7)
    v = random_values(pattern, row, seed=8, outside=0.0)
    sides = (
        es.sddmm(a, b, pattern, backend=row.backend).double() * v.double(),
        a.double() * es.spmm(b, v, pattern, backend=row.backend).double(),
        es.spmm(a, v, pattern, transpose=True, backend=row.backend).double() * b.double(),
    )
    # entries are rounded independently of each other, so their errors add up in quadrature
    sizes = (
        oracle.sddmm(a, b, pattern).magnitude * v.cpu().double(),
        oracle.spmm(b, v, pattern).magnitude * a.cpu().double(),
        oracle.spmm(a, v, pattern, transpose=True).magnitude * b.cpu().double(),
    )
    bound = 4 * torch.finfo(row.dtype).eps * max(float(size.norm()) for size in sizes)
    first, second, third = (float(side.sum()) for side in sides)
    assert abs(first - second) <= bound, f"<sddmm(a, b), v> = {first} but <a, spmm(b, v)> = {second}"
    assert abs(third - second) <= bound, f"<spmm(a, v, T), b> = {third} but <a, spmm(b, v)> = {second}"


def results_accumulate(row: Row, pattern: BlockPattern, *, batch: int = 11, alpha: float, beta: float) -> None:
    """``out ← alpha · result + beta · out`` for both operations; with beta 0 a NaN in ``out`` is not read."""
    pattern = pattern.to(row.device)
    a, b = randn(batch, pattern.shape[0], row=row, seed=3), randn(batch, pattern.shape[1], row=row, seed=4)
    values, scaling = random_values(pattern, row), {"alpha": alpha, "beta": beta, "backend": row.backend}
    for transpose, x, like in ((False, b, a), (True, a, b)):
        bias, old = randn(like.shape[1], row=row, seed=9), randn(*like.shape, row=row, seed=10)
        out = old.clone() if beta else torch.full_like(old, float("nan"))
        given = es.spmm(x, values, pattern, transpose=transpose, bias=bias, out=out, **scaling)
        assert given is out
        result = oracle.spmm(x, values, pattern, transpose=transpose, bias=bias)
        assert_accurate(out, oracle.accumulated(result, alpha, beta, old), "spmm into out")
    old = random_values(pattern, row, seed=12, outside=0.0)
    out = random_values(pattern, row, seed=12) if beta else torch.full_like(old, float("nan"))
    assert es.sddmm(a, b, pattern, out=out, **scaling) is out
    assert_accurate(out, oracle.accumulated(oracle.sddmm(a, b, pattern), alpha, beta, old), "sddmm into out")


def results_repeat(row: Row, pattern: BlockPattern, *, batch: int = 64, times: int = 3) -> None:
    """The same inputs give the same bits, run after run."""
    pattern = pattern.to(row.device)
    first = _bits(row, pattern, batch)
    for _ in range(times - 1):
        for name, got, before in zip(("y", "dx", "dvalues"), _bits(row, pattern, batch), first, strict=True):
            assert torch.equal(got, before), f"{name} changes from run to run"


def results_ignore_threads(row: Row, pattern: BlockPattern, *, batch: int = 64) -> None:
    """The same inputs give the same bits on one thread and on several."""
    pattern = pattern.to(row.device)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = _bits(row, pattern, batch)
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for name, got, one in zip(("y", "dx", "dvalues"), _bits(row, pattern, batch), alone, strict=True):
                assert torch.equal(got, one), f"{name} differs between 1 and {threads} threads"
    finally:
        torch.set_num_threads(before)


def _bits(row: Row, pattern: BlockPattern, batch: int) -> list[torch.Tensor]:
    a, b = randn(batch, pattern.shape[0], row=row, seed=3), randn(batch, pattern.shape[1], row=row, seed=4)
    values = random_values(pattern, row)
    y = es.spmm(b, values, pattern, backend=row.backend)
    dx = es.spmm(a, values, pattern, transpose=True, backend=row.backend)
    return [y, dx, es.sddmm(a, b, pattern, backend=row.backend)]
