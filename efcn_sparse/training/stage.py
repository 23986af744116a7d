"""One training run from its first or its latest checkpoint to its last epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from torch import nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.subspace import GradientParts, LayerDeviation, LayerGradientParts, deviation, record_gradient_parts
from efcn_sparse.training.checkpoint import epochs_on_disk
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.epoch import measure, train_epoch
from efcn_sparse.training.images import Images
from efcn_sparse.training.plan import Stage
from efcn_sparse.training.record import WEIGHTS, Record, Row
from efcn_sparse.training.start import begin, make_growth, resume


def run_stage(config: RelaxConfig, stage: Stage, images: Images, record: Record, checkpoint_seconds: float) -> None:
    """Train ``stage`` to its end, with an evaluation after every epoch.

    Args:
        checkpoint_seconds: how much work a kill may cost at most, beside the epoch that it strikes.
    """
    before, started = epochs_on_disk(record.checkpoints).get(stage.name, []), time.perf_counter()
    epoch = before[-1] if before else stage.first
    if before:
        model, optimizer = resume(config, stage, epoch, record.checkpoints)
        record.forget(stage)
    else:
        model, optimizer = begin(config, stage, images, record.checkpoints)
        _evaluate(stage, model, images, None, epoch, started, record)
        record.save(stage, model, optimizer, epoch)
    growth = make_growth(config, stage, model, optimizer, len(images.train_x), epoch)
    saved = time.perf_counter()
    while epoch < stage.last:
        epoch += 1
        started = time.perf_counter()
        gradient = train_epoch(
            model, optimizer, images, batch_size=config.batch_size, seed=stage.seed, epoch=epoch,
            watch=record_gradient_parts if stage.arm.embedded else None, growth=growth,
        )  # fmt: skip
        row = _evaluate(stage, model, images, gradient, epoch, started, record)
        record.progress.show(stage, row, advance=1)
        if epoch in stage.kept or time.perf_counter() - saved > checkpoint_seconds:
            record.save(stage, model, optimizer, epoch)
            saved = time.perf_counter()
        if epoch == stage.last:
            record.progress.finished(stage, row)


def _evaluate(
    stage: Stage,
    model: nn.Module,
    images: Images,
    gradient: GradientParts | None,
    epoch: int,
    started: float,
    record: Record,
) -> Row:
    """Measure the net after ``epoch`` and write the rows of metrics.csv and layers.csv."""
    where = {"arm": stage.arm, "seed": stage.seed, "relax_epoch": stage.relax_epoch, "epoch": epoch}
    row: dict[str, Any] = {**where, "lr": stage.lr, **measure(model, images)}
    if stage.arm.embedded:
        whole, layers = deviation(model), gradient.layers if gradient else {}
        stored = {name: _stored(layer) for name, layer in _embedded(model)}
        row |= _parts(whole, sum(stored.values()), gradient.total if gradient else None)
        record.layers.append(
            [
                {**where, "layer": name, **_parts(weights, stored[name], layers.get(name))}
                for name, weights in whole.layers.items()
            ]
        )
    row["seconds"] = round(time.perf_counter() - started, 4)
    record.metrics.append([row])
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
