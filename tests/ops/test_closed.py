"""The operations are closed under differentiation: derivatives are right, and are the same two operations again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests.ops.inputs import randn
from tests.table import FLOAT64, Row, is_slow, rows

SMALL: dict[str, Callable[[], BlockPattern]] = {
    "ragged-masked": lambda: BlockPattern.from_mask(
        torch.rand((7, 8), generator=torch.Generator().manual_seed(0)) < 0.4, (3, 3)
    ),
    "rectangular": lambda: BlockPattern.random((6, 8), (2, 4), 0.5, torch.Generator().manual_seed(0)),
    "entries": lambda: BlockPattern.random((5, 4), (1, 1), 0.4, torch.Generator().manual_seed(0)),
    "small-full": lambda: BlockPattern.dense((4, 6), (2, 2)),
    "small-empty": lambda: BlockPattern.random((4, 6), (2, 2), 0.0),
}


def _leaf(*shape: int, row: Row, seed: int) -> Tensor:
    return randn(*shape, row=row, seed=seed).requires_grad_()


@pytest.mark.parametrize("row", rows(FLOAT64))
@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("transpose", [False, True])
def test_first_and_second_derivatives_of_spmm(row: Row, small: str, transpose: bool) -> None:
    p = SMALL[small]().to(row.device)
    out_features, in_features = p.shape[::-1] if transpose else p.shape
    x, values = _leaf(3, in_features, row=row, seed=1), _leaf(*p.values_shape, row=row, seed=2)
    bias = _leaf(out_features, row=row, seed=3)

    def product(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return es.spmm(x, values, p, transpose=transpose, bias=bias, backend=row.backend)

    assert gradcheck(product, (x, values, bias), fast_mode=is_slow(row))
    assert gradgradcheck(product, (x, values, bias), fast_mode=is_slow(row))


@pytest.mark.parametrize("row", rows(FLOAT64))
@pytest.mark.parametrize("small", SMALL)
def test_first_and_second_derivatives_of_sddmm(row: Row, small: str) -> None:
    p = SMALL[small]().to(row.device)
    a, b = _leaf(3, p.shape[0], row=row, seed=1), _leaf(3, p.shape[1], row=row, seed=2)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return es.sddmm(a, b, p, backend=row.backend)

    assert gradcheck(product, (a, b), fast_mode=is_slow(row))
    assert gradgradcheck(product, (a, b), fast_mode=is_slow(row))


@pytest.mark.parametrize("row", rows(FLOAT64))
def test_leading_dimensions_keep_their_gradients(row: Row) -> None:
    p = SMALL["ragged-masked"]().to(row.device)
    x, values = _leaf(2, 2, p.shape[1], row=row, seed=1), _leaf(*p.values_shape, row=row, seed=2)
    assert gradcheck(lambda x, values: es.spmm(x, values, p, backend=row.backend), (x, values), fast_mode=is_slow(row))
    a = _leaf(2, 2, p.shape[0], row=row, seed=3)
    assert gradcheck(lambda a, x: es.sddmm(a, x, p, backend=row.backend), (a, x), fast_mode=is_slow(row))


class _Operators(TorchDispatchMode):
    """Collects the names of our operators, and of dense products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("efcn_sparse") or name in ("aten::mm", "aten::bmm", "aten::addmm"):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("row", rows(FLOAT64))
def test_three_orders_of_derivatives_are_the_two_operations(row: Row) -> None:
    p = SMALL["ragged-masked"]().to(row.device)
    x, values = _leaf(3, p.shape[1], row=row, seed=1), _leaf(*p.values_shape, row=row, seed=2)
    with _Operators() as operators:
        result = es.spmm(x, values, p, backend=row.backend).pow(3).sum()
        for _ in range(3):
            dx, dvalues = torch.autograd.grad(result, (x, values), create_graph=True)
            result = dx.pow(2).sum() + dvalues.pow(2).sum()
    assert operators.seen == {"efcn_sparse::spmm", "efcn_sparse::sddmm"}


@pytest.mark.parametrize("row", rows(FLOAT64))
@pytest.mark.parametrize("wanted", ["x", "values", "bias"])
def test_only_the_wanted_gradient_is_computed(row: Row, wanted: str) -> None:
    p = SMALL["rectangular"]().to(row.device)
    inputs = {
        "x": randn(3, p.shape[1], row=row, seed=1),
        "values": randn(*p.values_shape, row=row, seed=2),
        "bias": randn(p.shape[0], row=row, seed=3),
    }
    inputs[wanted].requires_grad_()
    y = es.spmm(inputs["x"], inputs["values"], p, bias=inputs["bias"], backend=row.backend)
    with _Operators() as operators:
        y.backward(torch.ones_like(y))
    assert operators.seen == {"x": {"efcn_sparse::spmm"}, "values": {"efcn_sparse::sddmm"}, "bias": set()}[wanted]
    assert inputs[wanted].grad is not None
