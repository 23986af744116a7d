"""bf16 values with fp32 masters or stochastic rounding, and what a fused optimizer refuses."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.fused.precision import round_stochastically

TINY_STEP = 2.0**-12  # far below the spacing of bf16 numbers near 1, which is 2**-7


def ones_layer(dtype: torch.dtype) -> es.SparseLinear:
    layer = es.SparseLinear(64, 64, es.BlockPattern.dense((64, 64), (16, 16)), bias=False, dtype=dtype)
    with torch.no_grad():
        layer.values.fill_(1.0)
    return layer


def descend(layer: es.SparseLinear, precision: str, steps: int) -> None:
    optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.SGD(p, lr=TINY_STEP), precision=precision)
    for _ in range(steps):
        with optimizer.updating():
            layer(torch.eye(64, dtype=layer.values.dtype)).sum().backward()  # every gradient is 1
        optimizer.step()


def test_native_bf16_loses_tiny_steps() -> None:
    layer = ones_layer(torch.bfloat16)
    descend(layer, "native", steps=64)
    assert (layer.values == 1.0).all()


def test_masters_keep_them() -> None:
    layer = ones_layer(torch.bfloat16)
    descend(layer, "master", steps=64)
    torch.testing.assert_close(layer.values.float(), torch.full_like(layer.values, 1 - 64 * TINY_STEP).float())


def test_stochastic_rounding_keeps_them_on_average() -> None:
    layer = ones_layer(torch.bfloat16)
    descend(layer, "stochastic", steps=64)
    expected = 1 - 64 * TINY_STEP
    assert layer.values.float().unique().numel() > 1
    assert abs(float(layer.values.detach().double().mean()) - expected) < 5e-4


@pytest.mark.parametrize("special", [0.0, float("inf"), float("-inf"), 1.5, -2.0])
def test_rounding_leaves_bf16_numbers_alone(special: float) -> None:
    x = torch.full((1000,), special)
    assert torch.equal(round_stochastically(x).float(), x)


def test_rounding_keeps_nan() -> None:
    assert round_stochastically(torch.full((100,), float("nan"))).isnan().all()


# -- refusals ----------------------------------------------------------------------------------------------------


def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize(
    ("model", "keywords", "message"),
    [
        (nn.Linear(4, 4), {}, "model must hold a SparseLinear that trains, got Linear without one"),
        (ones_layer(torch.float32), {"max_norm": 0}, "max_norm must be positive, got 0"),
        (
            ones_layer(torch.float32),
            {"precision": "half"},
            "precision must be one of ['master', 'native', 'stochastic'], got 'half'",
        ),
        (
            ones_layer(torch.float32),
            {"precision": "stochastic"},
            "precision 'stochastic' must be used with bfloat16 values, got torch.float32",
        ),
    ],
)
def test_bad_arguments(model: nn.Module, keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        es.FusedOptimizer(model, make, **keywords)


def test_a_second_fused_optimizer_is_refused() -> None:
    layer = ones_layer(torch.float32)
    first = es.FusedOptimizer(layer, make)
    with pytest.raises(ValueError, match="must have no fused optimizer yet"):
        es.FusedOptimizer(layer, make)
    first.detach()
    es.FusedOptimizer(layer, make)


def test_moved_values_are_noticed() -> None:
    layer = ones_layer(torch.float32)
    es.FusedOptimizer(layer, make)
    layer.double()
    with pytest.raises(RuntimeError, match="values must stay where they were"):
        layer(torch.randn(3, 64, dtype=torch.float64)).sum().backward()


def test_masked_entries_stay_zero() -> None:
    mask = torch.rand(40, 24) < 0.4
    layer = es.SparseLinear(24, 40, es.BlockPattern.from_mask(mask, (8, 8)))
    optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1))
    for _ in range(3):
        with optimizer.updating():
            layer(torch.randn(5, 24)).square().sum().backward()
        optimizer.step()
    support = layer.pattern.support_of_blocks()
    assert support is not None
    assert (layer.values[~support] == 0).all()
    assert (layer.values[support] != 0).all()


def test_gradient_of_the_input_and_bias_is_the_unfused_one() -> None:
    layer = es.SparseLinear(24, 40, es.BlockPattern.random((40, 24), (8, 8), 0.5))
    x = torch.randn(2, 3, 24, requires_grad=True)
    plain = torch.autograd.grad(layer(x).square().sum(), [x, layer.bias])
    es.FusedOptimizer(layer, make)
    fused = torch.autograd.grad(layer(x).square().sum(), [x, layer.bias], allow_unused=True)
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs)
