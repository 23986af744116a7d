"""``layer.weight`` reads like that of an nn.Linear; writing into it, which would be lost, is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import efcn_sparse as es
from tests import oracle
from tests.table import pattern


def _layer() -> es.SparseLinear:
    torch.manual_seed(0)
    return es.SparseLinear(43, 29, pattern("masked-ragged"), dtype=torch.float64)


def _iadd(layer: es.SparseLinear) -> None:
    layer.weight += 1


def _iadd_data(layer: es.SparseLinear) -> None:
    layer.weight.data += 1


def _set_data(layer: es.SparseLinear) -> None:
    layer.weight.data = torch.zeros(29, 43)


def _set_item(layer: es.SparseLinear) -> None:
    layer.weight[0] = 1


WRITES: dict[str, Callable[[es.SparseLinear], object]] = {
    "init": lambda layer: nn.init.xavier_uniform_(layer.weight),
    "init by name": lambda layer: nn.init.zeros_(tensor=layer.weight),
    "copy": lambda layer: layer.weight.copy_(torch.zeros(29, 43)),
    "copy to data": lambda layer: layer.weight.data.copy_(torch.zeros(29, 43)),
    "view": lambda layer: layer.weight[3].zero_(),
    "view of a view": lambda layer: layer.weight.detach().T[:7].fill_(1),
    "out": lambda layer: torch.add(layer.weight, 1, out=layer.weight),
    "foreach": lambda layer: torch._foreach_mul_([layer.weight], 2.0),
    "freeze": lambda layer: layer.weight.requires_grad_(False),
    "iadd": _iadd,
    "iadd to data": _iadd_data,
    "set data": _set_data,
    "set item": _set_item,
    "view of several": lambda layer: layer.weight.detach().chunk(3)[1].zero_(),
    "view by iteration": lambda layer: list(layer.weight)[1].zero_(),
    "view from another": lambda layer: layer.weight[:29].copy_(layer.weight),
}


@pytest.mark.parametrize("write", WRITES)
def test_writing_is_refused(write: str) -> None:
    layer = _layer()
    before = layer.values.detach().clone()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"^layer.weight of a sparse layer is made"):
        WRITES[write](layer)
    assert torch.equal(layer.values, before)


def test_reading() -> None:
    layer = _layer()
    dense = oracle.dense(layer.values, layer.pattern)
    x = torch.randn(5, 43, dtype=torch.float64)
    assert torch.equal(layer.weight, dense)
    assert (layer.weight.shape, layer.weight.dtype, int(layer.weight.ndim)) == ((29, 43), torch.float64, 2)
    for read in (
        torch.nn.functional.linear(x, layer.weight),
        layer.weight.clone(),
        layer.weight * 2,
        layer.weight.norm(),
    ):
        assert type(read) is Tensor
    torch.testing.assert_close(nn.functional.linear(x, layer.weight), x @ dense.T)
    torch.testing.assert_close(layer.weight[3:5].T @ torch.ones(2, dtype=torch.float64), dense[3:5].sum(0))
    copied = torch.zeros(29, 43, dtype=torch.float64)
    copied.copy_(layer.weight)
    assert torch.equal(copied, dense)
    file = io.BytesIO()
    torch.save(layer.weight.detach(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is Tensor
    assert torch.equal(loaded, dense)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The shape of each dense matrix that is made."""
    shapes: list[tuple[int, int]] = []
    original = es.BlockPattern.to_dense

    def counted(self: es.BlockPattern, values: Tensor) -> Tensor:
        shapes.append(self.shape)
        return original(self, values)

    monkeypatch.setattr(es.BlockPattern, "to_dense", counted)
    return shapes


def test_facts_make_no_matrix_and_numbers_make_one(made: list[tuple[int, int]]) -> None:
    layer = _layer()
    delta = es.SparseDelta(nn.Linear(43, 29).double(), layer.pattern)
    for weight in (layer.weight, delta.weight):
        assert isinstance(weight, Tensor)
        assert (weight.dtype, weight.device.type, weight.shape, weight.size(1)) == (torch.float64, "cpu", (29, 43), 43)
        assert (len(weight), weight.dim(), weight.ndim, weight.numel(), weight.element_size()) == (29, 2, 2, 1247, 8)
        assert (weight.stride(), weight.is_contiguous(), weight.layout) == ((43, 1), True, torch.strided)
        assert weight.requires_grad
        assert not weight.is_leaf
        assert weight.is_floating_point()
        assert not weight.is_meta
    assert not made
    weight = layer.weight
    assert float(weight.detach().norm()) == pytest.approx(float(layer.values.detach().norm()))
    nn.functional.linear(torch.ones(2, 43, dtype=torch.float64), weight).sum().backward()
    assert made == [(29, 43)]


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": lambda weight: weight.to(torch.float64),
    "double": lambda weight: weight.double(),
    "cpu": lambda weight: weight.cpu(),
    "contiguous": lambda weight: weight.contiguous(),
    "type_as": lambda weight: weight.type_as(weight),
    "plus": lambda weight: +weight,
    "real": lambda weight: weight.real,
    "flatten": lambda weight: weight.flatten(0, 0),
    "dropout": lambda weight: nn.functional.dropout(weight, 0.5, False),
    "view": lambda weight: weight.view(29, 43),
}


@pytest.mark.parametrize("read", [False, True], ids=["not read yet", "read"])
@pytest.mark.parametrize("name", SAME)
def test_what_changes_nothing_gives_the_weight(name: str, read: bool) -> None:
    layer = _layer()
    dense = oracle.dense(layer.values, layer.pattern)
    weight = layer.weight
    if read:
        weight.sum()
    same = SAME[name](weight)
    assert torch.equal(same, dense)
    (same * dense).sum().backward()
    torch.testing.assert_close(layer.values.grad, layer.pattern.gather(dense))
    assert torch.equal(SAME[name](layer.weight.detach()), dense)


def test_a_weight_that_is_read_in_inference_mode_trains_afterwards() -> None:
    layer = _layer()
    weight, x = layer.weight, torch.ones(2, 43, dtype=torch.float64)
    with torch.inference_mode():
        nn.functional.linear(x, weight)
    nn.functional.linear(x, weight).sum().backward()
    assert layer.values.grad.any()
    assert repr(weight).startswith("tensor([[")


def test_what_looks_past_the_operations_finds_the_numbers() -> None:
    layer = _layer()
    dense = oracle.dense(layer.values, layer.pattern)
    with pytest.raises(RuntimeError, match="requires grad"):
        layer.weight.numpy()
    with torch.no_grad():
        weight = layer.weight
        assert np.array_equal(np.asarray(weight), dense.numpy())
        assert np.array_equal(np.from_dlpack(weight), dense.numpy())
        assert weight.tolist() == dense.tolist()
        assert torch.equal(pickle.loads(pickle.dumps(weight)), dense)
        assert torch.equal(safetensors.torch.load(safetensors.torch.save({"weight": weight}))["weight"], dense)
        assert torch.equal(torch.vmap(lambda row: row * weight[0])(dense), dense * dense[0])


class _Fused(torch.autograd.Function):
    """As fused kernels of other libraries take a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return dy @ weight, dy.T @ x


def test_a_gradient_comes_through_functions_of_others() -> None:
    layer = _layer()
    x = torch.randn(5, 43, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(5, 29, dtype=torch.float64)
    _Fused.apply(x, layer.weight).backward(dy)
    torch.testing.assert_close(layer.values.grad, layer.pattern.gather(dy.T @ x.detach()))
    torch.testing.assert_close(x.grad, dy @ oracle.dense(layer.values, layer.pattern))
    weight = layer.weight
    (gradient,) = torch.autograd.grad(nn.functional.linear(x, weight).square().sum(), weight, create_graph=True)
    assert gradient.shape == weight.shape
    first = torch.autograd.grad(gradient.square().sum(), layer.values)[0]
    again = torch.autograd.grad(nn.functional.linear(x, layer.weight).square().sum(), x, create_graph=True)[0]
    assert torch.isfinite(again).all()
    dense = layer.pattern.to_dense(layer.values)
    (gradient,) = torch.autograd.grad(nn.functional.linear(x, dense).square().sum(), dense, create_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(gradient.square().sum(), layer.values)[0])


def test_a_weight_that_was_taken_before_a_step_is_refused() -> None:
    layer = _layer()
    taken, read = layer.weight, layer.weight
    before = read.detach().clone()
    with torch.no_grad():
        layer.values.add_(1)
    assert torch.equal(read, before)
    with pytest.raises(RuntimeError, match=r"^layer\.weight must be read before the values change"):
        taken.sum()
    assert not torch.equal(layer.weight, before)


def test_a_copy_is_a_plain_tensor() -> None:
    layer = es.SparseLinear(8, 6, density=0.5, block_shape=(2, 2))
    copied = copy.deepcopy(layer.weight.detach())
    assert type(copied) is Tensor
    assert torch.equal(copied, layer.to_linear().weight)
    copied.zero_()
    assert layer.weight.any()


def test_gradients_and_transforms() -> None:
    layer = _layer()
    x = torch.randn(5, 43, dtype=torch.float64)
    nn.functional.linear(x, layer.weight).square().sum().backward()
    through_weight = layer.values.grad.clone()
    layer.values.grad = None
    nn.functional.linear(x, layer.pattern.to_dense(layer.values)).square().sum().backward()
    assert torch.equal(layer.values.grad, through_weight)

    def penalty(values: Tensor) -> Tensor:
        return torch.func.functional_call(_Weight(layer), {"layer.values": values}, ()).square().sum()

    torch.testing.assert_close(torch.func.grad(penalty)(layer.values.detach()), 2 * layer.values.detach())
    compiled = torch.compile(lambda: layer.weight.square().sum(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(), layer.weight.square().sum())


class _Weight(nn.Module):
    def __init__(self, layer: es.SparseLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight
