"""Inputs may have any strides and any leading dimensions, in both passes."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests import oracle
from tests.ops.inputs import LAYOUTS, randn, random_values
from tests.oracle import assert_accurate
from tests.table import BFLOAT16, FLOAT32, FLOAT64, LEADING, Row, pattern, rows

NAMES = ("square", "masked-ragged", "column-blocks")


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, BFLOAT16))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_dense_inputs(row: Row, name: str, layout: str) -> None:
    p = pattern(name, row.device)
    a, b = (LAYOUTS[layout](randn(6, side, row=row, seed=side)) for side in p.shape)
    values = random_values(p, row)
    assert_accurate(es.spmm(b, values, p, backend=row.backend), oracle.spmm(b, values, p), "spmm")
    transposed = es.spmm(a, values, p, transpose=True, backend=row.backend)
    assert_accurate(transposed, oracle.spmm(a, values, p, transpose=True), "spmm, transposed")
    assert_accurate(es.sddmm(a, b, p, backend=row.backend), oracle.sddmm(a, b, p), "sddmm")


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, BFLOAT16))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not name.startswith("expanded")])
def test_layouts_of_values_and_bias(row: Row, name: str, layout: str) -> None:
    p = pattern(name, row.device)
    x, values = randn(6, p.shape[1], row=row, seed=1), LAYOUTS[layout](random_values(p, row))
    bias = randn(p.shape[0], 2, row=row, seed=2)[:, 0]
    y = es.spmm(x, values, p, bias=bias, backend=row.backend)
    assert_accurate(y, oracle.spmm(x, values, p, bias=bias), "spmm")


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, BFLOAT16))
@pytest.mark.parametrize("layout", ["expanded-rows", "expanded-both"])
def test_one_block_for_all_values(row: Row, layout: str) -> None:
    p = pattern("square", row.device)
    x = randn(6, p.shape[1], row=row, seed=1)
    values = LAYOUTS[layout](randn(*p.values_shape, row=row, seed=2))
    assert_accurate(es.spmm(x, values, p, backend=row.backend), oracle.spmm(x, values, p), "spmm")


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, BFLOAT16))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_gradient(row: Row, layout: str) -> None:
    p = pattern("masked-ragged", row.device)
    x = randn(6, p.shape[1], row=row, seed=1).requires_grad_()
    values = random_values(p, row).requires_grad_()
    dy = LAYOUTS[layout](randn(6, p.shape[0], row=row, seed=3))
    dx, dvalues = torch.autograd.grad(es.spmm(x, values, p, backend=row.backend), (x, values), dy)
    assert_accurate(dx, oracle.spmm(dy, values, p, transpose=True), "dx")
    assert_accurate(dvalues, oracle.sddmm(dy, x, p), "dvalues")


@pytest.mark.parametrize("row", rows(FLOAT64))
def test_gradients_reach_the_base_of_a_view(row: Row) -> None:
    p = pattern("masked-ragged", row.device)
    base = randn(p.shape[1] + 3, 12, row=row, seed=1).requires_grad_()
    values, dy = random_values(p, row), randn(6, p.shape[0], row=row, seed=2)
    es.spmm(base[3:, ::2].mT, values, p, backend=row.backend).backward(dy)
    expected = torch.zeros_like(base)
    expected[3:, ::2] = (dy @ oracle.dense(values, p).to(row.device)).mT
    torch.testing.assert_close(base.grad, expected)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_backward_of_a_plain_sum(row: Row) -> None:
    p = pattern("ragged", row.device)
    x, values = randn(5, p.shape[1], row=row, seed=1), random_values(p, row).requires_grad_()
    es.spmm(x, values, p, backend=row.backend).sum().backward()
    assert values.grad is not None
    assert_accurate(values.grad, oracle.sddmm(torch.ones(5, p.shape[0]), x, p), "dvalues")


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, BFLOAT16))
@pytest.mark.parametrize("leading", LEADING)
def test_leading_dimensions(row: Row, leading: tuple[int, ...]) -> None:
    p = pattern("ragged", row.device)
    a, b = (randn(*leading, side, row=row, seed=side) for side in p.shape)
    values = random_values(p, row).requires_grad_()
    y = es.spmm(b, values, p, backend=row.backend)
    assert tuple(y.shape) == (*leading, p.shape[0])
    assert_accurate(y, oracle.spmm(b, values, p), "spmm")
    y.backward(a)
    assert values.grad is not None
    assert_accurate(values.grad, oracle.sddmm(a, b, p), "dvalues")
    assert_accurate(es.sddmm(a, b, p, backend=row.backend), oracle.sddmm(a, b, p), "sddmm")


@pytest.mark.parametrize("row", rows(FLOAT64))
def test_permuted_leading_dimensions(row: Row) -> None:
    p = pattern("ragged", row.device)
    x, values = randn(3, p.shape[1], 2, row=row, seed=1).permute(2, 0, 1), random_values(p, row)
    assert_accurate(es.spmm(x, values, p, backend=row.backend), oracle.spmm(x, values, p), "spmm")
