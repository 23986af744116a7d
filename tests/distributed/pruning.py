"""What two processes do with a :class:`efcn_sparse.Pruner`, and what one does for comparison."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import efcn_sparse as es

_RULES = {"0": dict(density=0.25, block_shape=(4, 4))}


def work(rank: int) -> dict:
    model = _net(seed=rank)
    pruner = _train(model, DistributedDataParallel, rank, 2)
    torn = _net(seed=0)
    optimizer = torch.optim.SGD(torn.parameters(), lr=0.1)
    drifted = es.Pruner(DistributedDataParallel(torn), _RULES, es.CubicSchedule(begin=0, end=1), optimizer)
    with torch.no_grad():
        torn[0].weight += torch.randn(32, 16, generator=torch.Generator().manual_seed(rank))
    drifted.step()
    return {"pruned": model.state_dict(), "densities": pruner.densities, "drifted": drifted.state_dict()["kept"]["0"]}


def alone() -> dict:
    model = _net(seed=0)
    _train(model, lambda model: model, 0, 1)
    return model.state_dict()


def _net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).double()


def _train(model: nn.Module, wrap: Callable[[nn.Module], nn.Module], rank: int, world: int) -> es.Pruner:
    """Six steps with masks, two with sparse layers, each process with its share of the batch."""
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = es.Pruner(wrapped, _RULES, es.CubicSchedule(begin=0, end=6, every=2), optimizer, score="gradient")
    for step in range(8):
        if step == 6:
            wrapped = wrap(pruner.finish())
        x = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        share = slice(rank * 8 // world, (rank + 1) * 8 // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x[share]), (torch.arange(8) % 4)[share]).backward()
        optimizer.step()
        pruner.step()
    return pruner
