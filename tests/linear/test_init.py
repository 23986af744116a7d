"""``es.init`` draws by what each row and column of W stores, as torch does by the sides of a dense W."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import pattern

DRAWS = {
    "kaiming_uniform_": lambda i, o: math.sqrt(2 / (1 + 0.5**2)) * i**-0.5,
    "kaiming_normal_": lambda i, o: math.sqrt(2 / (1 + 0.5**2)) * i**-0.5,
    "xavier_uniform_": lambda i, o: math.sqrt(2) * (i + o) ** -0.5,
    "xavier_normal_": lambda i, o: math.sqrt(2) * (i + o) ** -0.5,
}


def _draw(name: str, layer: nn.Module, seed: int = 0) -> None:
    arguments = {"a": 0.5} if name.startswith("kaiming") else {}
    getattr(es.init, name)(layer, generator=torch.Generator().manual_seed(seed), **arguments)


@pytest.mark.parametrize("name", DRAWS)
def test_deviation_of_each_entry(name: str) -> None:
    p = pattern("masked-ragged")
    layer = es.SparseLinear(43, 29, p, dtype=torch.float64)
    stored = oracle.dense(torch.ones(p.values_shape), p)
    fan_in, fan_out = stored.sum(1)[:, None], stored.sum(0)[None, :]
    expected = torch.where(stored > 0, torch.as_tensor(DRAWS[name](fan_in, fan_out)), 0.0)
    collected = []
    for seed in range(400):
        _draw(name, layer, seed)
        collected.append(layer.values.detach().clone())
    drawn = torch.stack(collected)
    assert bool((drawn[:, ~oracle.support_of(p)] == 0).all())
    deviations = oracle.dense(drawn.square().mean(0).sqrt(), p)
    torch.testing.assert_close(deviations, expected, rtol=0.25, atol=0)  # seven standard deviations of 400 draws
    if "uniform" in name:
        assert bool((oracle.dense(drawn.abs().amax(0), p) <= math.sqrt(3) * expected * (1 + 1e-12)).all())


def test_fan_out() -> None:
    mask = torch.zeros(64, 512, dtype=torch.bool)
    mask[:16] = True
    layer = es.SparseLinear(512, 64, BlockPattern.from_mask(mask, (8, 8)))
    es.init.kaiming_normal_(layer, mode="fan_out", nonlinearity="linear")
    assert float(layer.values.detach().std()) == pytest.approx(1 / 4, rel=0.05)


@pytest.mark.parametrize("name", DRAWS)
def test_a_full_pattern_starts_as_torch_starts_the_dense_weight(name: str) -> None:
    layer, linear = es.SparseLinear(256, 128, BlockPattern.dense((128, 256), (32, 16))), nn.Linear(256, 128)
    arguments = {"a": 0.5} if name.startswith("kaiming") else {}
    getattr(nn.init, name)(linear.weight, **arguments)
    getattr(es.init, name)(layer, **arguments)
    assert float(layer.values.detach().std()) == pytest.approx(float(linear.weight.detach().std()), rel=0.05)


def test_an_embedded_convolution() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    layer = es.embed(conv, torch.zeros(1, 16, 8, 8))
    es.init.kaiming_normal_(layer, nonlinearity="relu")
    inner = layer.linear.weight.detach()[16 * (8 * 3 + 3) : 16 * (8 * 3 + 4)]  # the units of one pixel
    assert float(inner[inner != 0].std()) == pytest.approx(math.sqrt(2 / 144), rel=0.1)
    assert bool((layer.linear.bias == layer.linear.bias).all())


def test_refused() -> None:
    with pytest.raises(TypeError, match="layer must be a SparseLinear or an embedded convolution, got Linear"):
        es.init.xavier_normal_(nn.Linear(2, 2))
    layer = es.SparseLinear(4, 4, BlockPattern.dense((4, 4), (2, 2)))
    with pytest.raises(ValueError, match="mode must be 'fan_in' or 'fan_out', got 'fan'"):
        es.init.kaiming_normal_(layer, mode="fan")
