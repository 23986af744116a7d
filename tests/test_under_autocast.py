"""Whoever writes weights tells ``torch.autocast``, which keeps 16-bit copies of those of torch's layers."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.checkpoint import load_sharded, save_sharded
from efcn_sparse.training import RelaxConfig, SelectiveSGD, Task, load_arm, run_relax
from efcn_sparse.training.run.epoch import Training, evaluate, train_epoch
from tests.training.runs import DIGITS, task_data

X = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def _loss(net: nn.Module, x: Tensor = X) -> Tensor:
    return net(x).float().square().mean()


def _cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))


def _along(kind: str, **settings: object) -> list[float]:
    there = es.landscape.path(_cnn(0), _cnn(1), lambda net: float(_loss(net)), points=3, kind=kind, **settings)
    return list(there.losses)


def _steps(make: Callable[[nn.Module], torch.optim.Optimizer]) -> list[float]:
    net = es.embed(_cnn(), X, support=es.Dilated(1))
    optimizer, losses = make(net), []
    updating = optimizer.updating if isinstance(optimizer, es.FusedOptimizer) else contextlib.nullcontext
    for _ in range(3):
        loss = _loss(net)
        optimizer.zero_grad()
        with updating():
            loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _pruned() -> list[float]:
    net = _cnn()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rules = {"3": dict(density=0.25, block_shape=(8, 8))}
    pruner = es.Pruner(net, rules, es.CubicSchedule(begin=1, end=2), optimizer)
    losses = [float(_loss(net).detach())]
    for _ in range(2):
        pruner.step()
        losses.append(float(_loss(net).detach()))
    return losses


def _epochs() -> list[float]:
    config = RelaxConfig.from_preset("digits", train_limit=100, test_limit=100)
    learnt, net = task_data(config, 0), DIGITS.fresh(0)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for epoch in (1, 2):
        train_epoch(Training(learnt, 100, 0, net, optimizer), epoch)  # one step
        losses.append(evaluate(net, learnt, "test")["loss"])
    return losses


def _loaded(folder: Path) -> list[float]:
    net = _cnn()
    losses = [float(_loss(net).detach())]
    save_sharded(_cnn(1), folder)
    load_sharded(net, folder)
    return [*losses, float(_loss(net).detach())]


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))


def _relaxed(folder: Path) -> list[float]:
    """Of all arms whose nets are written after they ran: from the beginning, and from their checkpoints."""
    y = torch.arange(16) % 4
    task = Task(_small, (X, y), (X, y))
    config = RelaxConfig(
        arms=("cnn", "fcn", "elcn", "efcn-lowrank2"), cnn_epochs=1, relax_epochs=1, relax_times=(1,), fcn_epochs=1,
        batch_size=8, lr=0.1,
    )  # fmt: skip
    run_relax(task, config, folder, quiet=True)
    losses = []
    for arm, time, epoch in (("elcn", 1, 2), ("efcn-lowrank2", 1, 2), ("fcn", None, 1)):
        net = load_arm(folder, arm, 0, time, epoch, task=task).eval()
        losses.append(float(_loss(net).detach()))
    rows = [float(row["test_loss"]) for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines())]
    return [*rows, *losses]


def _low_rank() -> list[float]:
    net = es.embed(_cnn(), X, support=es.LowRank(2))
    with es.record_factors(net) as factors:
        _loss(net).backward()
    es.start_low_rank(net, factors)
    _loss(net).backward()
    return [float(net[0].low_rank.left.grad.norm()), float(_loss(net).detach())]


def _merged() -> list[float]:
    torch.manual_seed(0)
    layer = es.SparseDelta(nn.Linear(36, 16), density=0.5, block_shape=(4, 4))
    layer.linear.requires_grad_(True)  # again
    net = nn.Sequential(nn.Flatten(), layer)
    nn.init.normal_(layer.delta.values)
    losses = [float(_loss(net).detach())]
    layer.merge()
    return [*losses, float(_loss(net).detach())]


CASES: dict[str, Callable[[Path], list[float]]] = {
    "linear path": lambda _: _along("linear"),
    "curvilinear path": lambda _: _along("curvilinear"),
    "string": lambda _: _along("string", batches=[X], loss=_loss, epochs=2),
    "fused": lambda _: _steps(lambda net: es.FusedOptimizer(net, lambda p: torch.optim.SGD(p, lr=0.1))),
    "selective": lambda _: _steps(lambda net: SelectiveSGD(net, lr=0.1)),
    "epochs": lambda _: _epochs(),
    "pruner": lambda _: _pruned(),
    "load_sharded": _loaded,
    "run_relax": _relaxed,
    "start_low_rank": lambda _: _low_rank(),
    "merge": lambda _: _merged(),
}


@pytest.mark.parametrize("case", CASES)
def test_what_was_written_counts(case: str, tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = CASES[case](tmp_path / "expected")
    with torch.autocast("cpu", torch.bfloat16):
        found = CASES[case](tmp_path / "found")
    assert len({*expected}) > 1
    assert found == expected
