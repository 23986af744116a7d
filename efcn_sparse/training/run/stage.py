"""One training run from its first or its latest checkpoint to its last epoch, wherever it runs."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efcn_sparse.default_device import on_cpu
from efcn_sparse.embedding import EmbeddedConv, embedded_layers
from efcn_sparse.embedding.example_run import random_numbers_kept
from efcn_sparse.landscape import locality
from efcn_sparse.subspace import GradientParts, LayerDeviation, LayerGradientParts, deviation, record_gradient_parts
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.checkpoint import checkpoint_path, epochs_on_disk, save_checkpoint
from efcn_sparse.training.run.epoch import TaskData, Training, measure, train_epoch
from efcn_sparse.training.run.metrics import LOCALITY, WEIGHTS, Row
from efcn_sparse.training.run.plan import Stage
from efcn_sparse.training.run.record import Record
from efcn_sparse.training.run.source import DataBySeed, Source
from efcn_sparse.training.run.start import start

_ONE_AT_A_TIME = threading.Lock()  # torch has one generator and one number of threads for all threads of Python


@dataclass(frozen=True)
class Job:
    """A stage that is to be trained, as it can be sent to another process or machine.

    Attributes:
        source: where the task comes from.
        run_dir: of the run, on a disk that all workers share.
        columns: of metrics.csv.
        parent_diverged: the CNN has diverged by the relax time, so that there is nothing to embed.
        remade: epochs of which the CNN, which has come further, is to have a checkpoint once more.
        threads: of torch; None leaves them as they are.
        checkpoint_seconds: how much work a kill may cost at most, beside the epoch that it strikes.
    """

    source: Source
    config: RelaxConfig
    run_dir: Path
    stage: Stage
    columns: tuple[str, ...]
    parent_diverged: bool
    remade: tuple[int, ...]
    threads: int | None
    checkpoint_seconds: float


def train_stage(job: Job, data_by_seed: DataBySeed | None = None, notify: Callable[[], None] = lambda: None) -> None:
    """Train the stage of ``job`` to its end; stages that are done are only given the checkpoints that they lack.

    Everything it needs is in ``job`` and in the run directory, and everything it makes is there.

    Args:
        data_by_seed: what the source gives; None: it is made here.
        notify: called after each row.
    """
    with _ONE_AT_A_TIME, settled(job.config.device, job.threads):
        record = Record(job.run_dir, job.stage, job.columns, notify)
        with contextlib.closing(record):
            try:
                if job.parent_diverged:
                    _give_up(job.stage, record)
                    return
                data_by_seed = data_by_seed or DataBySeed.of(job.source, job.config)
                if not record.kept or record.kept[-1] < job.stage.last:
                    _run(job, data_by_seed.of_seed(job.stage.seed), record)
                _remake_snapshots(job, data_by_seed, record)
                record.tell("done")
            except BaseException:
                record.tell(f"stopped\n{traceback.format_exc()}")
                raise


def _run(job: Job, task_data: TaskData, record: Record) -> None:
    """Train with an evaluation after every epoch.

    A net whose loss is no finite number any more has diverged: its last row says so, and the stage ends there. What
    would be embedded from it has a single row without numbers.
    """
    config, stage, started = job.config, job.stage, time.perf_counter()
    epoch = record.kept[-1] if record.kept else stage.first
    record.tell(f"goes on from epoch {epoch}" if record.kept else f"begins at epoch {epoch}")
    training = start(config, stage, task_data, job.run_dir, epoch if record.kept else None)
    model, optimizer = training.model, training.optimizer
    if record.kept:
        record.forget()
    else:
        _evaluate(stage, training, None, epoch, started, record)
        record.save(model, optimizer, epoch)
    saved = time.perf_counter()
    while epoch < stage.last and not record.diverged:
        epoch += 1
        started = time.perf_counter()
        gradient: GradientParts | None = None
        try:
            gradient = train_epoch(training, epoch, record_gradient_parts if stage.arm.embedded else None)
        except ValueError:  # blocks do not move by a gradient that is not finite
            if all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                raise
        _evaluate(stage, training, gradient, epoch, started, record)
        last = epoch == stage.last or record.diverged
        if last or epoch in stage.kept or time.perf_counter() - saved > job.checkpoint_seconds:
            record.save(model, optimizer, epoch)
            saved = time.perf_counter()


def _give_up(stage: Stage, record: Record) -> None:
    """The one row of a net that is not embedded, because its CNN has diverged."""
    measured = dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), math.nan)
    record.append({**_key(stage, stage.first), "lr": stage.lr, **measured, "seconds": 0.0}, [])
    record.sync()


def _remake_snapshots(job: Job, data_by_seed: DataBySeed, record: Record) -> None:
    """Train the CNN once more up to those epochs that it has no checkpoint of; its rows are there already.

    Law: they are the checkpoints that it would have, had they been asked for from the beginning.
    """
    cnn = job.stage
    for wanted in sorted(job.remade):
        before = [epoch for epoch in epochs_on_disk(job.run_dir)[cnn.name] if epoch <= wanted]
        if wanted in before:
            continue
        task_data, first = data_by_seed.of_seed(cnn.seed), before[-1] if before else cnn.first
        record.tell(f"trains again from epoch {first} to {wanted}, of which a checkpoint is wanted")
        training = start(job.config, cnn, task_data, job.run_dir, first if before else None)
        for epoch in range(first + 1, wanted + 1):
            train_epoch(training, epoch)
        save_checkpoint(checkpoint_path(job.run_dir, cnn.name, wanted), training.model, training.optimizer)


def _key(stage: Stage, epoch: int) -> dict[str, object]:
    return {"arm": stage.arm.name, "seed": stage.seed, "relax_epoch": stage.relax_epoch, "epoch": epoch}


def _evaluate(
    stage: Stage, training: Training, gradient: GradientParts | None, epoch: int, started: float, record: Record
) -> None:
    """Measure the net after ``epoch`` and write the rows of metrics.csv and layers.csv."""
    where, model, task_data = _key(stage, epoch), training.model, training.task_data
    lr = stage.lr if task_data.task.schedule is None else float(training.optimizer.param_groups[0]["lr"])
    row: dict[str, Any] = {**where, "lr": lr, **measure(model, task_data)}
    of_layers: list[Row] = []
    if stage.arm.embedded:
        embedded = embedded_layers(model)
        is_product = any(layer.low_rank is not None for layer in embedded.values())
        if is_product:
            gradient = None  # off-local weights follow it though none is in the support: U and V train
        whole, layers = deviation(model), gradient.layers if gradient else {}
        stored = {name: _stored(layer) for name, layer in embedded.items()}
        local = {} if is_product else _locality(model)
        row |= _parts(whole, sum(stored.values()), gradient.total if gradient else None)
        of_layers = [
            {**where, "layer": name, **_parts(weights, stored[name], layers.get(name)), **local.get(name, {})}
            for name, weights in whole.layers.items()
        ]
    row["seconds"] = round(time.perf_counter() - started, 4)
    record.append(row, of_layers)


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


def _locality(model: nn.Module) -> dict[str, dict[str, float]]:
    """The measures of locality that need no images."""
    return {name: {column: getattr(found, column) for column in LOCALITY} for name, found in locality(model).items()}


@contextlib.contextmanager
def settled(device: str, threads: int | None) -> Iterator[None]:
    """The run's threads and deterministic convolutions inside; the caller's settings and generators outside."""
    on, before = torch.device(device), torch.get_num_threads()
    with (
        random_numbers_kept([on] if on.type == "cuda" else []),
        on_cpu(),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.set_num_threads(before)
