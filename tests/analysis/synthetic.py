"""A made-up run directory in the format of ``efcn-sparse relax``: curves from formulas, checkpoints of a tiny net."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from efcn_sparse.analysis.landscape import FILE, MOMENTS, Found, Item, LandscapeSettings, write_found
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.training.arms import CONTROL, ELCN
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.checkpoint import checkpoint_path, save_checkpoint
from efcn_sparse.training.run.metrics import LAYERS, METRICS
from efcn_sparse.training.run.nets import build_like
from efcn_sparse.training.run.plan import Stage, stages
from efcn_sparse.training.run.source import preset_task

PLATEAU = {"fcn": 0.61, "cnn": 0.93, "cnn-relaxed": 0.935, "elcn": 0.90, "efcn-full": 0.86}


CAPTURED = {"elcn": 0.0, "efcn-dilated2": 0.4, "efcn-full": 1.0}


def tiny_cnn(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 4 * 4, classes),
    )  # fmt: skip


def write_run(
    path: Path,
    config: RelaxConfig,
    *,
    last: Callable[[Stage], int] = lambda stage: stage.last,
    checkpoints: bool = True,
) -> Path:
    """Write the run with every stage trained up to epoch ``last(stage)``; a stage below its first has not begun."""
    path.mkdir(parents=True)
    (path / "checkpoints").mkdir()
    (path / "config.json").write_text(config.to_json())
    (path / "environment.json").write_text(json.dumps({"torch": torch.__version__, "cpu": "synthetic", "cores": 2}))
    metrics: list[dict[str, object]] = []
    layers: list[dict[str, object]] = []
    for stage in stages(config):
        epochs = range(stage.first, last(stage) + 1)
        for epoch in epochs:
            row, of_layers = _evaluation(stage, epoch)
            metrics.append(row)
            layers += of_layers
        if checkpoints and stage.arm.name.startswith("efcn"):
            for epoch in stage.kept:
                if epoch in epochs:
                    _checkpoint(path, config, stage, epoch)
    _write(path / "metrics.csv", METRICS, metrics)
    _write(path / "layers.csv", LAYERS, layers)
    return path


def write_landscape(path: Path, config: RelaxConfig) -> None:
    """A landscape.json of which one path has a loss that is not finite."""
    found = []
    for stage in stages(config):
        if stage.relax_epoch is None or not stage.arm.embedded:
            continue
        ends = (stage.relax_epoch, stage.last)
        for what, height in (("left", 0.1), ("cnn", 0.5)):
            losses = [0.5, 0.4 + height / (1 + stage.relax_epoch), 0.1]
            if not found:
                losses[1] = math.inf
            numbers = {"positions": [0.0, 0.5, 1.0], "train_loss": losses, "test_loss": losses}
            found.append(Found(Item(what, "linear", stage.arm, stage.seed, stage.relax_epoch, ends), numbers))
        curved = {"dimension": 1000, "top": 3.0, "trace": 5.0, "trace_error": 0.5, "along": -0.1}
        parts = ("all", "tied", "untied") if stage.arm == ELCN else ("all", "tied", "untied", "off_local")
        for what in MOMENTS:
            item = Item(what, "curvature", stage.arm, stage.seed, stage.relax_epoch, ends)
            found.append(Found(item, dict.fromkeys(parts, curved)))
    write_found(path / FILE, LandscapeSettings(), found)


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _evaluation(stage: Stage, epoch: int) -> tuple[dict[str, object], list[dict[str, object]]]:
    time = stage.relax_epoch or 0
    noise = np.random.default_rng([stage.seed, epoch, time, *stage.arm.name.encode()]).normal(0, 0.004)
    since, plateau = epoch - stage.first, PLATEAU.get(stage.arm.name, 0.88)
    start = 0.1 if stage.relax_epoch is None else 0.93 - 0.83 * math.exp(-time / 5)
    top = plateau if stage.relax_epoch is None else plateau + 0.08 * (1 - math.exp(-time / 8))
    test = top - (top - start) * math.exp(-since / 4) + noise + 0.004 * stage.seed
    key = {"arm": stage.arm, "seed": stage.seed, "relax_epoch": stage.relax_epoch, "epoch": epoch}
    row = {
        **key, "lr": stage.lr, "train_loss": -math.log(min(0.999, test + 0.05)), "train_accuracy": min(1, test + 0.05),
        "test_loss": -math.log(min(0.99, test)), "test_accuracy": test, "seconds": 0.5,
    }  # fmt: skip
    if stage.relax_epoch is None or stage.arm == CONTROL:
        return row, []
    names = ("0", "2")
    parts = [_parts(stage.arm.name, since, time, index + 1.0) for index in range(len(names))]
    whole = np.sqrt(np.square(parts).sum(0))
    supports = [_support(stage.arm.name, since, index) for index in range(len(names))]
    of_layers = [
        {**key, "layer": name, **_named(part), **support, **_locality(part)}
        for name, part, support in zip(names, parts, supports, strict=True)
    ]
    stored = sum(int(support["stored"]) for support in supports)  # type: ignore[call-overload]
    return {**row, **_named(whole), **_support(stage.arm.name, since, 0.5), "stored": stored}, of_layers


def _locality(parts: np.ndarray) -> dict[str, object]:
    delta = float(parts[2] / np.sqrt(np.square(parts).sum()))
    return {"participation": 0.1 - 0.05 * delta, "gyration": 1 + 2 * delta, "non_locality": 1 + 3 * delta}


def _support(arm: str, since: int, index: float) -> dict[str, object]:
    captured = CAPTURED.get(arm, 0.5)
    stored = round(1000 * (1 + index) * (1 + 8 * captured**2))
    if since == 0:
        return {"stored": stored}
    off_local = 0.6 + 0.1 * index - 0.02 * since
    return {"stored": stored, "leak": (1 - captured) * off_local, "captured": captured}


def _parts(arm: str, since: int, time: int, scale: float) -> np.ndarray:
    moved = scale * (1 - math.exp(-since / 5)) / (1 + 0.2 * time)
    off_local = 0.0 if arm == "elcn" else 0.5 * moved * (1.5 if arm == "efcn-full" else 1.0)
    return np.array([3 * scale, 0.7 * moved, off_local])


def _named(parts: np.ndarray) -> dict[str, object]:
    tied, untied, off_local = (float(part) for part in parts)
    delta = off_local / math.sqrt(tied**2 + untied**2 + off_local**2)
    return {"tied": tied, "untied": untied, "off_local": off_local, "delta": delta}


@torch.no_grad()
def _checkpoint(path: Path, config: RelaxConfig, stage: Stage, epoch: int) -> None:
    model = build_like(stage.arm, preset_task(config), stage.seed)
    generator = torch.Generator().manual_seed(epoch)
    for layer in model.modules():
        if isinstance(layer, EmbeddedConv) and epoch > stage.first:
            support = layer.linear.pattern.gather(torch.ones(layer.linear.pattern.shape))
            noise = torch.randn(support.shape, generator=generator)
            layer.linear.values += 0.01 * (epoch - stage.first) * support * noise
    save_checkpoint(checkpoint_path(path, stage.name, epoch), model)
