"""A small net that grows, and steps of its training that are always the same."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.fused import updating

LAYERS = ("0", "2")
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


def growing_net(budget: float = 1.5, dtype: torch.dtype = torch.float32, backend: str = "auto") -> nn.Sequential:
    twin = copy.deepcopy(_embedded(budget, dtype))
    torch.manual_seed(1)  # what is drawn next does not depend on who came first
    for name in LAYERS:
        twin.get_submodule(name).linear.backend = backend
    return twin


@functools.cache
def _embedded(budget: float, dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).to(dtype)
    support = es.Grown(budget)
    layers = {"0": dict(support=support, block_shape=(8, 6)), "2": dict(support=support, block_shape=(8, 8))}
    return es.embed(cnn, torch.zeros(1, 3, 6, 6, dtype=dtype), layers=layers)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn((9, 3, 6, 6), generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 5, (9,), generator=generator)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    growth: es.Growth,
    steps: range,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, int]]:
    """What moved in each step: blocks by layer."""
    moved = []
    for step in steps:
        x, y = batch(step, dtype)
        optimizer.zero_grad()
        with growth.watch(), updating(optimizer):
            (5 * nn.functional.cross_entropy(model(x).float(), y)).backward()
        optimizer.step()
        moved.append({name: done.blocks for name, done in growth.step().items()})
    return moved


def assert_same(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
