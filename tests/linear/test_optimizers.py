"""``values`` and ``bias`` are plain parameters, and entries outside the support stay exactly zero."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import BFLOAT16, FLOAT32, FLOAT64, Row, pattern, rows

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd-momentum-decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32, BFLOAT16))
@pytest.mark.parametrize("name", ["masked", "masked-ragged", "ragged", "larger-than-the-matrix"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_entries_outside_the_support_stay_zero(row: Row, name: str, optimizer: str) -> None:
    torch.manual_seed(0)
    p = pattern(name, row.device)
    layer = es.SparseLinear(p.shape[1], p.shape[0], p, dtype=row.dtype, device=row.device)
    layer.backend = row.backend
    outside, before = ~oracle.support_of(p), layer.values.detach().clone()
    assert bool((layer.values[outside] == 0).all())
    stepper = OPTIMIZERS[optimizer](layer.parameters())
    for _ in range(5):
        stepper.zero_grad()
        layer(torch.randn(9, p.shape[1], dtype=row.dtype).to(row.device)).square().mean().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        stepper.step()
    assert bool((layer.values[outside] == 0).all())
    assert bool((layer.values != before)[~outside].any())


def test_parameters() -> None:
    p = pattern("ragged")
    layer = es.SparseLinear(37, 35, p)
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == {
        "values": p.values_shape,
        "bias": (35,),
    }
    assert all(type(parameter) is nn.Parameter and parameter.is_leaf for parameter in layer.parameters())
    assert [name for name, _ in es.SparseLinear(37, 35, p, bias=False).named_parameters()] == ["values"]
    assert [name for name, _ in layer.named_buffers()] == ["crow_indices", "col_indices"]


def test_clipping_counts_the_stored_gradient() -> None:
    layer = es.SparseLinear(48, 32, pattern("masked"))
    layer(torch.randn(5, 48)).square().sum().backward()
    weight = pattern("masked").to_dense(layer.values.grad)
    expected = torch.stack([weight.norm(), layer.bias.grad.norm()]).norm()
    assert nn.utils.clip_grad_norm_(layer.parameters(), 1.0) == pytest.approx(float(expected), rel=1e-5)
    after = torch.stack([layer.values.grad.norm(), layer.bias.grad.norm()]).norm()
    assert float(after) == pytest.approx(1.0, rel=1e-4)


def test_optimizer_state_survives_saving() -> None:
    torch.manual_seed(0)
    layer = es.SparseLinear(48, 32, pattern("masked"))
    stepper = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(5, 48)).sum().backward()
    stepper.step()
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "optimizer": stepper.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = es.SparseLinear(48, 32, pattern("masked"))
    other.load_state_dict(saved["layer"])
    resumed = torch.optim.AdamW(other.parameters())
    resumed.load_state_dict(saved["optimizer"])
    x = torch.randn(5, 48)
    for one, step in ((layer, stepper), (other, resumed)):
        step.zero_grad()
        one(x).square().sum().backward()
        step.step()
    assert torch.equal(layer.values, other.values)


def test_parameters_to_vector_and_back() -> None:
    layer = es.SparseLinear(48, 32, pattern("masked"))
    vector = nn.utils.parameters_to_vector(layer.parameters())
    assert vector.shape == (layer.values.numel() + 32,)
    nn.utils.vector_to_parameters(vector * 2, layer.parameters())
    assert torch.equal(nn.utils.parameters_to_vector(layer.parameters()), vector * 2)


def test_gradients_accumulate_over_micro_batches() -> None:
    layer = es.SparseLinear(48, 32, pattern("masked"), dtype=torch.float64)
    x = torch.randn(8, 48, dtype=torch.float64)
    layer(x).square().sum().backward()
    whole = layer.values.grad.clone()
    layer.zero_grad()
    for part in x.split(3):
        layer(part).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, whole)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    layer = es.SparseLinear(48, 32, BlockPattern.dense((32, 48), (16, 16)))
    x = torch.randn(8, 48, requires_grad=True)
    layer(x).square().sum().backward()
    expected = layer.values.grad.clone()
    layer.zero_grad()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(layer.values.grad, expected)
