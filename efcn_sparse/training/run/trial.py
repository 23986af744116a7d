"""A task of somebody's own is tried out before anything is trained, and recognized when its run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from efcn_sparse import embedding
from efcn_sparse.checkpoint.atomic import read_json
from efcn_sparse.linear import SparseLinear
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.training.arms import CNN, Arm
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.optim.carry import check_optimizers
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint
from efcn_sparse.training.run.epoch import TaskData, Training, augmented, evaluate, train_epoch
from efcn_sparse.training.run.optimizer import optimizer_of, scheduler_of
from efcn_sparse.training.run.plan import Stage, stages
from efcn_sparse.training.run.run_directory import read_config
from efcn_sparse.training.task import Task

_log = logging.getLogger("efcn_sparse.training")
_SAMPLES = 32  # of a data set's examples, by which it is recognized
FILE = "task.json"


def try_out(config: RelaxConfig, task_data: TaskData) -> tuple[str, ...]:
    """Train the CNN for two steps, look whether it can be gone on with exactly, and embed it in thought.

    What cannot be resumed bit by bit is told in warnings.

    Returns:
        The names of the metrics beside loss and accuracy.

    Raises:
        ValueError: something does not fit, cannot be embedded, raises an error or gives the wrong thing; the message
            names the field of the task, or of ``config``.
    """
    task = task_data.task
    config.check_task(task)
    if config.data is not None:
        raise ValueError(f"data must be left out beside a task, which has its own, got {config.data!r}")
    _check_embeds(config, task)
    few = task_data.limited(config.batch_size, 2)
    metrics = evaluate(task.fresh(0).to(config.device), few, "test")
    _check_optimizer(config, task)
    for told in _hidden_states(config, few):
        _log.warning("a run that is killed may not go on bit by bit: %s", told)
    return tuple(name for name in metrics if name not in ("loss", "accuracy"))


def _check_embeds(config: RelaxConfig, task: Task) -> None:
    cnn = task.fresh(0)
    for arm in map(Arm.parse, config.arms):
        if arm.support is None:
            continue
        try:
            planned = embedding.plan(cnn, task.example, support=arm.support)
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"build must make a CNN that can be embedded as {arm}: {error}") from error
        if {layer.name for layer in planned.layers} != set(task.convolutions):
            raise ValueError(f"build must make a CNN with the same convolutions in each call, got {task.convolutions}")


def _check_optimizer(config: RelaxConfig, task: Task) -> None:
    """Fused updates and carried momentum are exact or refused."""
    if task.optimizer is None:
        return
    if config.fused:
        layer = SparseLinear(8, 8, BlockPattern.dense((8, 8), (4, 4)))
        try:
            optimizer_of(config, task, CNN, config.lr, layer)
        except ValueError as error:
            raise ValueError(f"fused must be left out beside this optimizer: {error}") from None
    if config.carry_momentum:
        optimizer = optimizer_of(replace(config, fused=False), task, CNN, config.lr, task.fresh(0))
        try:
            check_optimizers(optimizer, optimizer)
        except TypeError as error:
            raise ValueError(f"carry_momentum must be left out beside this optimizer: {error}") from None


def _hidden_states(config: RelaxConfig, few: TaskData) -> Iterator[str]:
    """What a second call does otherwise, or a second process would."""
    task = few.task
    if not _alike(lambda: [*task.fresh(0).state_dict().values()]):
        yield "build gives other weights when torch's generator is the same; each start has a CNN of its own"
    for examples in (few.train, few.test):
        if not _alike(examples.samples, 1):
            yield f"{examples.field} gives another example when it is asked again; it has a generator of its own"
    if task.augment is not None:
        ((x, y),) = few.train.batches([slice(0, len(few.train))], 0)
        if not _alike(lambda: list(augmented(task, x.clone(), y.clone(), torch.Generator().manual_seed(0)))):
            yield "augment gives something else when its generator is the same"
    if _digest(_second_step(config, few, False)) != _digest(_second_step(config, few, True)):
        yield (
            "a net that was loaded from its checkpoint takes another step; optimizer, schedule, loss or the net keep "
            "something that no checkpoint has"
        )


def _second_step(config: RelaxConfig, few: TaskData, reloaded: bool) -> list[Tensor]:
    """The state of the CNN after two steps, with a checkpoint in between or without."""
    stage = Stage(CNN, 0, None, 0, 2, config.lr, ())

    def fresh(epoch: int) -> Training:
        model = few.task.fresh(0).to(config.device)
        optimizer = optimizer_of(replace(config, fused=False), few.task, CNN, config.lr, model)
        return Training(few, len(few.train), 0, model, optimizer, scheduler_of(few.task, optimizer, stage, 1, epoch))

    training = fresh(0)
    for epoch in (1, 2):
        if epoch == 2 and reloaded:
            with tempfile.TemporaryDirectory() as folder:
                save_checkpoint(Path(folder) / "one", training.model, training.optimizer)
                training = fresh(1)
                load_checkpoint(Path(folder) / "one", training.model, training.optimizer)
        train_epoch(training, epoch)
    return [*training.model.state_dict().values()]


def _alike(call: Callable[..., list[Tensor]], *arguments: int) -> bool:
    return _digest(call(*arguments)) == _digest(call(*arguments))


def _digest(tensors: Iterable[Tensor]) -> str:
    """Of their bytes, so that NaN equals itself."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(str((tensor.dtype, list(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def recognize(run_dir: Path, config: RelaxConfig, task_data: TaskData, seed: int) -> str:
    """The text of ``task.json``, by which the task of a run is recognized when it goes on.

    Args:
        seed: of the task_data's examples.

    Raises:
        ValueError: ``run_dir`` was begun with another task; the message names the field.
    """
    path, here = run_dir / FILE, _described(task_data, seed)
    there = read_json(path) if path.is_file() else {}
    for field, text in here.items():
        if field in there and there[field] != text:
            before, now = (one if one == "none" else repr(one) for one in (there[field], text))
            raise ValueError(f"task must have the {field} that run_dir {run_dir} was begun with, {before}, got {now}")
    if task_data.task.schedule is not None and (run_dir / "config.json").is_file():
        before = {stage.name: stage.last for stage in stages(read_config(run_dir))}
        for stage in stages(config):
            if before.get(stage.name, stage.last) != stage.last:
                raise ValueError(
                    f"relax_times must not lengthen {stage.name} where a schedule goes by its steps, got one of "
                    f"{stage.last} epochs after one of {before[stage.name]}"
                )
    return json.dumps({**there, **here}, indent=2) + "\n"


def _described(task_data: TaskData, seed: int) -> dict[str, str]:
    """The fields of a task in words that are the same in every process."""
    task = task_data.task
    shapes = {name: list(tensor.shape) for name, tensor in task.fresh(0).state_dict().items()}
    text = hashlib.blake2b(json.dumps(shapes).encode(), digest_size=8).hexdigest()
    told = {"build": f"a net of {len(shapes)} tensors, {text}"}
    for examples in (task_data.train, task_data.test):
        where = f" of seed {seed}" if task.depends_on_seed(examples.field) else ""
        digest = _digest(examples.samples(_SAMPLES)) if _alike(examples.samples, 1) else "drawn at random"
        told[f"{examples.field}{where}"] = f"{len(examples)} examples, {digest}"
    for field in ("loss", "metrics", "optimizer", "schedule", "augment", "collate"):
        value = getattr(task, field)
        told[field] = "none" if value is None else getattr(value, "__qualname__", type(value).__qualname__)
    return told
