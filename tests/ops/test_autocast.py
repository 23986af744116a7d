"""Autocast lowers the operands of both operations, and gradients come back in the dtype of their leaves."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests import oracle
from tests.ops.inputs import randn, random_values
from tests.oracle import assert_accurate
from tests.table import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Row, pattern, rows


@pytest.mark.parametrize("row", rows(FLOAT32))
@pytest.mark.parametrize("low", [BFLOAT16, FLOAT16])
def test_forward_and_backward(row: Row, low: torch.dtype) -> None:
    p = pattern("masked-ragged", row.device)
    x, bias = randn(6, p.shape[1], row=row, seed=1), randn(p.shape[0], row=row, seed=2)
    values = random_values(p, row, outside=0.0)
    leaves = [leaf.requires_grad_() for leaf in (x, values, bias)]
    with torch.autocast(row.device, low):
        y = es.spmm(x, values, p, bias=bias, backend=row.backend)
    assert y.dtype == low
    assert_accurate(y, oracle.spmm(x.to(low), values.to(low), p, bias=bias.to(low)), "spmm")
    dy = randn(6, p.shape[0], row=row, seed=3).to(low)
    gradients = torch.autograd.grad(y, leaves, dy)
    assert [gradient.dtype for gradient in gradients] == [row.dtype] * 3
    assert_accurate(gradients[0].to(low), oracle.spmm(dy, values.to(low), p, transpose=True), "dx")
    assert_accurate(gradients[1].to(low), oracle.sddmm(dy, x.to(low), p), "dvalues")


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_sddmm(row: Row) -> None:
    p = pattern("square", row.device)
    a, b = randn(6, p.shape[0], row=row, seed=1), randn(6, p.shape[1], row=row, seed=2)
    with torch.autocast(row.device, BFLOAT16):
        assert es.sddmm(a, b, p, backend=row.backend).dtype == BFLOAT16


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_operands_of_two_dtypes_meet(row: Row) -> None:
    p = pattern("square", row.device)
    x, values = randn(6, p.shape[1], row=row, seed=1), random_values(p, row)
    with torch.autocast(row.device, BFLOAT16):
        mixed = es.spmm(x.to(BFLOAT16), values, p, backend=row.backend)
        assert torch.equal(mixed, es.spmm(x, values, p, backend=row.backend))


@pytest.mark.parametrize("row", rows(FLOAT64))
def test_fp64_stays(row: Row) -> None:
    p = pattern("square", row.device)
    x, values = randn(6, p.shape[1], row=row, seed=1), random_values(p, row)
    with torch.autocast(row.device, BFLOAT16):
        assert es.spmm(x, values, p, backend=row.backend).dtype == FLOAT64
        with pytest.raises(TypeError, match=r"x must have the dtype of values, torch.float32, got torch.float64"):
            es.spmm(x, values.float(), p, backend=row.backend)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_results_into_out_are_not_cast(row: Row) -> None:
    p = pattern("square", row.device)
    x, values = randn(6, p.shape[1], row=row, seed=1), random_values(p, row)
    plain, out = es.spmm(x, values, p, backend=row.backend), torch.empty(6, p.shape[0], device=row.device)
    with torch.autocast(row.device, BFLOAT16):
        assert torch.equal(es.spmm(x, values, p, out=out, backend=row.backend), plain)
        with pytest.raises(TypeError, match=r"x must have the dtype of values, torch.bfloat16, got torch.float32"):
            es.spmm(x, values.to(BFLOAT16), p, out=out, backend=row.backend)
