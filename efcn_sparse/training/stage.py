"""One training run from its first or its latest checkpoint to its last epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.subspace import GradientParts, LayerDeviation, LayerGradientParts, deviation, record_gradient_parts
from efcn_sparse.training.checkpoint import checkpoint_path, epochs_on_disk, save_checkpoint
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.epoch import measure, train_epoch
from efcn_sparse.training.images import Images
from efcn_sparse.training.metrics import WEIGHTS, Row
from efcn_sparse.training.plan import Stage
from efcn_sparse.training.record import Record
from efcn_sparse.training.start import begin, make_growth, name_of_cnn, resume


def run_stage(config: RelaxConfig, stage: Stage, images: Images, record: Record, checkpoint_seconds: float) -> None:
    """Train ``stage`` to its end, with an evaluation after every epoch.

    A net whose loss is no finite number any more has diverged: its last row says so, and the stage ends there. What
    would be embedded from it has a single row without numbers.

    Args:
        checkpoint_seconds: how much work a kill may cost at most, beside the epoch that it strikes.
    """
    before, started = epochs_on_disk(record.checkpoints).get(stage.name, []), time.perf_counter()
    epoch = before[-1] if before else stage.first
    if before:
        model, optimizer = resume(config, stage, epoch, record.checkpoints)
        record.forget(stage)
    elif stage.relax_epoch is not None and record.diverged.get(name_of_cnn(stage), stage.first + 1) <= stage.first:
        _give_up(stage, record)
        return
    else:
        model, optimizer = begin(config, stage, images, record.checkpoints)
        _evaluate(stage, model, images, None, epoch, started, record)
        record.save(stage, model, optimizer, epoch)
    growth = make_growth(config, stage, model, optimizer, len(images.train_x), epoch)
    saved = time.perf_counter()
    while epoch < stage.last and stage.name not in record.diverged:
        epoch += 1
        started = time.perf_counter()
        gradient: GradientParts | None = None
        try:
            gradient = train_epoch(
                model, optimizer, images, batch_size=config.batch_size, seed=stage.seed, epoch=epoch,
                watch=record_gradient_parts if stage.arm.embedded else None, growth=growth,
            )  # fmt: skip
        except ValueError:  # blocks do not move by a gradient that is not finite
            if all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                raise
        row = _evaluate(stage, model, images, gradient, epoch, started, record)
        last = epoch == stage.last or stage.name in record.diverged
        record.progress.show(stage, row, advance=1, last=last)
        if last or epoch in stage.kept or time.perf_counter() - saved > checkpoint_seconds:
            record.save(stage, model, optimizer, epoch)
            saved = time.perf_counter()


def _give_up(stage: Stage, record: Record) -> None:
    """The one row of a net that is not embedded, because its CNN has diverged."""
    measured = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), math.nan)
    row: Row = {**_key(stage, stage.first), "lr": stage.lr, **measured, "seconds": 0.0}
    record.metrics.append([row])
    record.metrics.sync()
    record.diverged[stage.name] = stage.first
    record.progress.show(stage, row, advance=stage.last - stage.first, last=True)


def remake_snapshots(
    config: RelaxConfig, cnn: Stage, epochs: Iterable[int], images_of: Callable[[int], Images], record: Record
) -> None:
    """Train the CNN once more up to those of ``epochs`` that it has no checkpoint of; its rows are there already.

    Law: they are the checkpoints that it would have, had they been asked for from the beginning.
    """
    for wanted in sorted(epochs):
        before = [epoch for epoch in epochs_on_disk(record.checkpoints).get(cnn.name, []) if epoch <= wanted]
        if wanted in before:
            continue
        start, images = before[-1] if before else cnn.first, images_of(cnn.seed)
        model, optimizer = (
            resume(config, cnn, start, record.checkpoints) if before else begin(config, cnn, images, record.checkpoints)
        )
        for epoch in range(start + 1, wanted + 1):
            train_epoch(model, optimizer, images, batch_size=config.batch_size, seed=cnn.seed, epoch=epoch)
        save_checkpoint(checkpoint_path(record.checkpoints, cnn.name, wanted), model, optimizer)


def _key(stage: Stage, epoch: int) -> dict[str, object]:
    return {"arm": stage.arm.name, "seed": stage.seed, "relax_epoch": stage.relax_epoch, "epoch": epoch}


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
    where = _key(stage, epoch)
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
    if not math.isfinite(row["train_loss"]):
        record.diverged[stage.name] = epoch
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
