"""Values start from U(-1/√fan_in, 1/√fan_in), where fan_in counts what a row stores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import PATTERNS, pattern


@pytest.mark.parametrize("name", PATTERNS)
def test_bounds_of_each_row(name: str) -> None:
    torch.manual_seed(0)
    p = pattern(name)
    layer = es.SparseLinear(p.shape[1], p.shape[0], p)
    fan_in = oracle.dense(torch.ones(p.values_shape), p).sum(1).clamp(min=1)
    weight = oracle.dense(layer.values, p)
    assert bool((weight.abs() <= fan_in.rsqrt()[:, None] * (1 + 1e-6)).all())
    assert bool((layer.bias.abs() <= fan_in.rsqrt() * (1 + 1e-6)).all())
    assert bool((layer.values[~oracle.support_of(p)] == 0).all())


@pytest.mark.parametrize("fan_in", [16, 64, 256])
def test_variance(fan_in: int) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(512, 1024, dtype=torch.bool)
    mask[:, :fan_in] = True
    layer = es.SparseLinear(1024, 512, BlockPattern.from_mask(mask, (16, 16)))
    assert float(layer.values.detach().var()) == pytest.approx(1 / (3 * fan_in), rel=0.05)
    assert float(layer.values.detach().mean()) == pytest.approx(0, abs=0.01 / math.sqrt(fan_in))
    assert float(layer(torch.randn(64, 1024)).detach().var()) == pytest.approx(1 / 3 + 1 / (3 * fan_in), rel=0.1)


def test_unequal_rows_have_unequal_bounds() -> None:
    torch.manual_seed(0)
    layer = es.SparseLinear(200, 64, pattern("unbalanced"), bias=False)
    weight = layer.to_linear().weight.detach()
    for row, fan_in in ((0, 200), (1, 8), (3, 8)):
        stored = weight[16 * row : 16 * (row + 1)]
        stored = stored[stored != 0]
        assert float(stored.abs().max()) <= fan_in**-0.5
        assert float(stored.abs().max()) > 0.9 * fan_in**-0.5


def test_dense_patterns_start_as_nn_linear_does() -> None:
    torch.manual_seed(0)
    layer = es.SparseLinear(256, 512, BlockPattern.dense((512, 256), (32, 32)))
    linear = nn.Linear(256, 512)
    for mine, theirs in ((layer.values, linear.weight), (layer.bias, linear.bias)):
        assert float(mine.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.1)
        assert float(mine.detach().abs().max()) == pytest.approx(float(theirs.detach().abs().max()), rel=0.02)


def test_the_seed_decides() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return es.SparseLinear(48, 64, pattern("square")).values.detach()

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_reset_draws_anew() -> None:
    layer = es.SparseLinear(48, 64, pattern("square"))
    before = layer.values.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.values, before)
