"""End to end: a layer that starts with the wrong blocks finds those that made the data."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es

PLANTED, STORED, SHAPE, BLOCK = 12, 18, (64, 96), (8, 8)  # of 96 blocks


def truth() -> tuple[es.BlockPattern, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    planted = es.BlockPattern.random(SHAPE, BLOCK, PLANTED / 96, generator)
    return planted, planted.to_dense(torch.randn(planted.values_shape, generator=generator))


def train(regrowths: int, name: str) -> tuple[es.SparseLinear, list[float], list[float]]:
    _, weight = truth()
    generator = torch.Generator().manual_seed(8)
    layer = es.SparseLinear(96, 64, es.BlockPattern.random(SHAPE, BLOCK, STORED / 96, generator), bias=False)
    layer.values.data.zero_()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    }[name]
    optimizer, losses, leaks = make(layer.parameters()), [], []
    for step in range(160):
        x = torch.randn((128, 96), generator=generator)
        optimizer.zero_grad()
        with es.record_factors(layer) as factors:
            loss = (layer(x) - x @ weight.T).square().sum(1).mean() / 2
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
        dy, x = factors[""]
        leaks.append(float(es.outside_gradient_norm(dy, x, layer.pattern)))
        if step % 10 == 9 and step < 10 * regrowths:
            es.regrow(layer, dy, x, blocks=4, optimizer=optimizer)
    return layer, losses, leaks


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_planted_blocks_are_found(name: str) -> None:
    planted, weight = truth()
    layer, losses, leaks = train(8, name)
    found = layer.pattern.to_mask() & planted.to_mask()
    assert int(found.sum()) == planted.nnz  # all of them
    assert layer.pattern.nnz_blocks == STORED
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0.05)
    assert losses[-1] < 1e-2 * losses[0]
    assert leaks[-1] < 0.02 * leaks[0]


def test_they_are_not_found_without_regrowing() -> None:
    planted, _ = truth()
    layer, losses, leaks = train(0, "sgd")
    assert int((layer.pattern.to_mask() & planted.to_mask()).sum()) < planted.nnz / 2
    assert losses[-1] > 0.5 * losses[0]
    assert leaks[-1] > 0.5 * leaks[0]
