"""``layer.weight`` reads like that of an nn.Linear; writing into it, which would be lost, is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
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
