"""A net that trains fused beside one that does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.fused import updating


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.1)


KINDS: dict[str, tuple[Callable, dict[str, Any]]] = {
    "momentum": (momentum, {}),
    "adamw": (adamw, {}),
    "inside": (sgd, {"inside": True}),
    "max_norm": (momentum, {"max_norm": 0.3}),
    "skip_nonfinite": (adamw, {"skip_nonfinite": True}),
}


class Pair:
    """A net that trains fused, and its twin that trains without."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float64) -> None:
        make, self.settings = KINDS[kind]
        generator = torch.manual_seed(0)
        first = es.BlockPattern.from_mask(torch.rand((30, 21), generator=generator) < 0.5, (8, 4))
        second = es.BlockPattern.random((17, 30), (8, 8), 0.5, generator)
        self.net = nn.Sequential(
            es.SparseLinear(21, 30, first), nn.Tanh(), es.SparseLinear(30, 17, second), nn.Linear(17, 21)
        ).to(dtype)
        self.twin = copy.deepcopy(self.net)
        self.optimizer, self.unfused = es.FusedOptimizer(self.net, make, **self.settings), make(self.twin.parameters())

    def batch(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn((6, 21), generator=generator, dtype=torch.float64).to(self.net[0].values.dtype)

    def step(self, loss: Callable[[nn.Module], Tensor], inside: bool = True, zero: bool = True) -> None:
        """Take a step with both."""
        for net, optimizer in ((self.net, self.optimizer), (self.twin, self.unfused)):
            if zero:
                optimizer.zero_grad()
            if inside:
                with updating(optimizer):
                    loss(net).backward()
            else:
                loss(net).backward()
            self.finish(net, optimizer)

    def finish(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if net is self.twin and "max_norm" in self.settings:
            nn.utils.clip_grad_norm_(net.parameters(), self.settings["max_norm"])
        optimizer.step()

    def assert_same(self) -> None:
        for mine, theirs in zip(self.net.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
        for parameter, twin in zip(self.net.parameters(), self.twin.parameters(), strict=True):
            mine, theirs = self.optimizer.state.get(parameter, {}), self.unfused.state.get(twin, {})
            for key, entry in theirs.items() if "inside" not in self.settings else ():
                if entry is not None:
                    torch.testing.assert_close(mine[key], entry, rtol=1e-9, atol=1e-11)
