"""One training run from its first or its latest checkpoint to its last epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.subspace import GradientParts, LayerDeviation, LayerGradientParts, deviation, record_gradient_parts
from efcn_sparse.training.carry import carry_state
from efcn_sparse.training.checkpoint import (
    checkpoint_path,
    epochs_on_disk,
    load_checkpoint,
    save_checkpoint,
    stored_block_shapes,
)
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.epoch import read_performance, train_epoch
from efcn_sparse.training.growing import make_growth
from efcn_sparse.training.images import Images
from efcn_sparse.training.low_rank import begin_low_rank
from efcn_sparse.training.nets import build_cnn, build_like, embed_as
from efcn_sparse.training.optimizer import optimizer_of
from efcn_sparse.training.plan import CNN, Stage, is_embedded, stage_name
from efcn_sparse.training.progress import Progress
from efcn_sparse.training.readings import WEIGHTS, Readings


@dataclass
class Notebook:
    """Where a stage writes to: readings, checkpoints and the screen."""

    metrics: Readings
    layers: Readings
    progress: Progress
    checkpoints: Path
    checkpoint_seconds: float


def run_stage(config: RelaxConfig, stage: Stage, images: Images, notebook: Notebook) -> None:
    """Train ``stage`` to its end, with a reading after every epoch.

    The order on the disk is: rows, then the checkpoint that covers them, then the removal of the one before. So a
    checkpoint never lacks its rows, and rows past it are what a kill left.
    """
    before = epochs_on_disk(notebook.checkpoints).get(stage.name, [])
    if before:
        epoch = before[-1]
        path = checkpoint_path(notebook.checkpoints, stage.name, epoch)
        model = build_like(stage.arm, config.preset, stage.seed, stored_block_shapes(path))
    else:
        epoch = stage.first
        model = _first_model(config, stage, notebook.checkpoints)
    model = model.to(config.device)
    if not before:
        begin_low_rank(model, images, batch_size=config.batch_size, seed=stage.seed, epoch=epoch + 1)
    optimizer = optimizer_of(config, stage.arm, stage.lr, model)
    started = time.perf_counter()
    if before:
        load_checkpoint(path, model, optimizer)
        _forget(stage, before, notebook.checkpoints)
    else:
        if config.carry_momentum and stage.relax_epoch is not None:
            _carry_momentum(config, stage, model, optimizer, notebook.checkpoints)
        _write_reading(stage, model, images, None, epoch, started, notebook)
        _write_checkpoint(stage, model, optimizer, epoch, notebook)
    growth = make_growth(config, stage, model, optimizer, len(images.train_x), epoch)
    saved = time.perf_counter()
    while epoch < stage.last:
        epoch += 1
        started = time.perf_counter()
        gradient = train_epoch(
            model, optimizer, images, batch_size=config.batch_size, seed=stage.seed, epoch=epoch,
            watch=record_gradient_parts if is_embedded(stage.arm) else None, growth=growth,
        )  # fmt: skip
        row = _write_reading(stage, model, images, gradient, epoch, started, notebook)
        notebook.progress.show(stage, row, advance=1)
        if epoch in stage.kept or time.perf_counter() - saved > notebook.checkpoint_seconds:
            _write_checkpoint(stage, model, optimizer, epoch, notebook)
            saved = time.perf_counter()
        if epoch == stage.last:
            notebook.progress.finished(stage, row)


def _first_model(config: RelaxConfig, stage: Stage, checkpoints: Path) -> nn.Module:
    if stage.relax_epoch is None:
        return build_like(stage.arm, config.preset, stage.seed)
    cnn = build_cnn(config.preset, stage.seed)
    load_checkpoint(checkpoint_path(checkpoints, stage_name(CNN, stage.seed, None), stage.relax_epoch), cnn)
    if not all(bool(parameter.isfinite().all()) for parameter in cnn.parameters()):
        raise ValueError(
            f"lr must keep the CNN finite, got {config.lr}: seed {stage.seed} diverged by epoch {stage.first}"
        )
    return embed_as(stage.arm, cnn, config.preset) if is_embedded(stage.arm) else cnn


def _carry_momentum(
    config: RelaxConfig, stage: Stage, model: nn.Module, optimizer: torch.optim.Optimizer, checkpoints: Path
) -> None:
    """Let a relaxed stage begin with the momentum that the CNN had at that epoch; at epoch 0 it has none."""
    assert stage.relax_epoch is not None
    cnn = build_cnn(config.preset, stage.seed).to(config.device)
    of_cnn = optimizer_of(config, CNN, config.lr, cnn)
    name = stage_name(CNN, stage.seed, None)
    load_checkpoint(checkpoint_path(checkpoints, name, stage.relax_epoch), cnn, of_cnn)
    carry_state(cnn, of_cnn, model, optimizer)


def _write_reading(
    stage: Stage,
    model: nn.Module,
    images: Images,
    gradient: GradientParts | None,
    epoch: int,
    started: float,
    notebook: Notebook,
) -> dict[str, Any]:
    where = {"arm": stage.arm, "seed": stage.seed, "relax_epoch": stage.relax_epoch, "epoch": epoch}
    row: dict[str, Any] = {**where, "lr": stage.lr, **read_performance(model, images)}
    if is_embedded(stage.arm):
        reading, layers = deviation(model), gradient.layers if gradient else {}
        stored = {name: _stored(layer) for name, layer in _embedded(model)}
        row |= _parts(reading, sum(stored.values()), gradient.total if gradient else None)
        notebook.layers.append(
            [
                {**where, "layer": name, **_parts(weights, stored[name], layers.get(name))}
                for name, weights in reading.layers.items()
            ]
        )
    row["seconds"] = round(time.perf_counter() - started, 4)
    notebook.metrics.append([row])
    return row


def _parts(weights: LayerDeviation, stored: int, gradient: LayerGradientParts | None) -> dict[str, Any]:
    """The columns that tell of the weights and the support of a layer or of all; before a step there is no gradient."""
    row: dict[str, Any] = {part: getattr(weights, part) for part in WEIGHTS} | {"stored": stored}
    if gradient is not None:
        captured = gradient.captured
        row |= {"leak": gradient.leak, "captured": None if math.isnan(captured) else captured}
    return row


def _stored(layer: EmbeddedConv) -> int:
    """Weights in the support, and the numbers of a low-rank part."""
    parts = () if layer.low_rank is None else layer.low_rank.parameters()
    return layer.linear.pattern.nnz + sum(part.numel() for part in parts)


def _embedded(model: nn.Module) -> Iterator[tuple[str, EmbeddedConv]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, EmbeddedConv))


def _write_checkpoint(
    stage: Stage, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, notebook: Notebook
) -> None:
    notebook.metrics.sync()
    notebook.layers.sync()
    save_checkpoint(checkpoint_path(notebook.checkpoints, stage.name, epoch), model, optimizer)
    _forget(stage, epochs_on_disk(notebook.checkpoints)[stage.name], notebook.checkpoints)


def _forget(stage: Stage, epochs: list[int], checkpoints: Path) -> None:
    """Remove the checkpoints that served only for going on, except the latest."""
    for epoch in epochs[:-1]:
        if epoch not in stage.kept:
            checkpoint_path(checkpoints, stage.name, epoch).unlink()
