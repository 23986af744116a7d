"""The gradient of a bias, which the compiled kernel of SDDMM sums along the way: every path of it, every block row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad as fwAD

import efcn_sparse as es
from tests import oracle
from tests.ops.inputs import randn, random_values
from tests.table import FLOAT32, Row, cases, pattern, rows

COMPILED = dict(where=lambda backend: backend.name == "cpu")
PATHS = ("square", "ragged", "masked-ragged", "odd-blocks", "mid-blocks", "entries", "unbalanced", "empty")


def gradient(name: str, row: Row, dy: Tensor) -> Tensor:
    layout = pattern(name)
    x, bias = randn(len(dy), layout.shape[1], row=row, seed=1), randn(layout.shape[0], row=row, seed=2)
    values = random_values(layout, row).requires_grad_()
    y = es.spmm(x, values, layout, bias=bias.requires_grad_(), backend=row.backend)
    return torch.autograd.grad(y, (bias, values), dy)[0]


@pytest.mark.parametrize(("row", "name"), cases(PATHS, **COMPILED))
def test_every_batch_and_pattern(row: Row, name: str, poisoned: None) -> None:
    for batch in (1, 40, 700):
        dy = randn(batch, pattern(name).shape[0], row=row, seed=batch)
        found = gradient(name, row, dy)
        oracle.assert_accurate(found, oracle.column_sums(dy), f"dbias of {batch}")
        assert torch.equal(found, torch.ops.efcn_sparse_cpu.column_sums(dy))  # as fused optimizers take it


@pytest.mark.parametrize("row", rows(FLOAT32, **COMPILED))
@pytest.mark.parametrize(
    "laid_out",
    [
        lambda dy: dy.t().contiguous().t(),
        lambda dy: torch.cat([dy, dy], 1)[:, : dy.shape[1]],
        lambda dy: dy[:1].expand(len(dy), -1),
        lambda dy: dy[:1, :1].expand(dy.shape),
        lambda dy: torch._neg_view(dy),
    ],
    ids=["columns", "in a wider one", "one row", "one number", "negative"],
)
def test_every_layout(row: Row, laid_out, poisoned: None) -> None:
    dy = laid_out(randn(70, pattern("ragged").shape[0], row=row, seed=3))
    oracle.assert_accurate(gradient("ragged", row, dy), oracle.column_sums(dy), "dbias")


@pytest.mark.parametrize("row", rows(FLOAT32, **COMPILED))
def test_long_sums_do_not_drift(row: Row) -> None:
    dy = torch.full((1 << 16, pattern("square").shape[0]), 0.1)
    assert (gradient("square", row, dy) / (dy[0].double() * len(dy)) - 1).abs().max() < 1e-5


def test_the_profiler_sees_the_operator_and_its_shapes() -> None:
    layer = es.SparseLinear(64, 48, es.BlockPattern.random((48, 64), (16, 16), 0.5))
    with torch.profiler.profile(record_shapes=True) as seen:
        layer(torch.randn(40, 64)).sum().backward()
    (event,) = (event for event in seen.events() if event.name == "efcn_sparse::sddmm")
    assert event.input_shapes[:2] == [[40, 48], [40, 64]]


@pytest.mark.parametrize("frozen", [False, True])
def test_no_batch_at_all(frozen: bool) -> None:
    layer = es.SparseLinear(32, 32, density=0.5, block_shape=(16, 16))
    layer.values.requires_grad_(not frozen)
    layer(torch.randn(0, 32)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.zeros(32))


def test_tangents_of_a_gradient_pass() -> None:
    layer, x = es.SparseLinear(32, 32, density=1.0, block_shape=(16, 16)), torch.ones(4, 32)
    with fwAD.dual_level():
        weights = fwAD.make_dual(torch.ones(32), torch.ones(32))
        gradients = torch.autograd.grad((layer(x) * weights).sum(), [layer.values, layer.bias])
        for gradient in gradients:
            assert (fwAD.unpack_dual(gradient).tangent == 4).all()
