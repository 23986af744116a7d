"""One epoch of training, and the evaluation of loss and accuracy after it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.fused import updating
from efcn_sparse.growth import Growth
from efcn_sparse.landscape.modes import evaluation_mode
from efcn_sparse.training.data.examples import Examples
from efcn_sparse.training.data.images import derived_seed, order_of_epoch
from efcn_sparse.training.task import Task

EVALUATION_BATCH = 2000
TRAIN_EVALUATED = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class TaskData:
    """A task with the examples of one seed: what a net is trained on."""

    task: Task
    train: Examples
    test: Examples

    def steps(self, batch_size: int) -> int:
        """How many steps an epoch has."""
        return -(-len(self.train) // batch_size)

    def limited(self, train: int, test: int) -> TaskData:
        """The same with the first examples alone."""
        return TaskData(self.task, self.train.limited(train), self.test.limited(test))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        with self.task.blaming("build"):
            output = model(x)
        return self.loss_of(output, y)

    def loss_of(self, output: Any, y: Tensor) -> Tensor:
        """The loss of what the net said."""
        with self.task.blaming("loss"):
            loss = self.task.loss(output, y)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss must give a scalar tensor, got {got}")
        return loss


@dataclass(frozen=True)
class Training:
    """A net and all that trains it, after some epoch."""

    task_data: TaskData
    batch_size: int
    seed: int
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    growth: Growth | None = None


def train_epoch(
    training: Training,
    epoch: int,
    watch: Callable[[nn.Module], contextlib.AbstractContextManager[T]] | None = None,
) -> T | None:
    """Show every training example once, in the order of ``(seed, epoch)``; the last batch may be smaller.

    What is drawn at random in an epoch follows from ``(seed, epoch)`` alone, so nothing of it has to be kept.

    Args:
        watch: makes what is entered around forward and backward of one step, that of the last whole batch: the gradient
            there is of as many images as others, and of nearly the weights that the epoch ends with.

    Returns:
        What ``watch`` gave; None without it.
    """
    task_data, seed, model = training.task_data, training.seed, training.model
    optimizer, scheduler, growth = training.optimizer, training.scheduler, training.growth
    model.train()
    task = task_data.task
    torch.manual_seed(derived_seed("dropout", seed, epoch))
    generator = torch.Generator("cpu").manual_seed(derived_seed("augment", seed, epoch))
    chunks = order_of_epoch(seed, epoch, len(task_data.train)).split(training.batch_size)
    watched = max(0, len(task_data.train) // training.batch_size - 1)
    seen: T | None = None
    for step, (x, y) in enumerate(task_data.train.batches(chunks, derived_seed("loader", seed, epoch))):
        x, y = augmented(task, x, y, generator)
        with contextlib.ExitStack() as around:
            if watch is not None and step == watched:
                seen = around.enter_context(watch(model))
            if growth is not None:
                around.enter_context(growth.watch())
            loss = task_data.loss(model, x, y)
            optimizer.zero_grad()
            around.enter_context(updating(optimizer))
            loss.backward()
        with task.blaming("optimizer"):
            optimizer.step()
        weights_were_written()
        if scheduler is not None:
            with task.blaming("schedule"):
                scheduler.step()
        if growth is not None:
            growth.step()
    return seen


def augmented(task: Task, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The batch that is trained on."""
    if task.augment is None:
        return x, y
    with task.blaming("augment"):
        batch = task.augment(x, y, generator)
    if not isinstance(batch, tuple) or len(batch) != 2 or not all(isinstance(one, Tensor) for one in batch):
        raise ValueError(f"augment must give the tensors x and y of a batch, got {type(batch).__name__}")
    if len(batch[0]) != len(batch[1]):
        raise ValueError(f"augment must give x and y of one length, got {len(batch[0])} and {len(batch[1])}")
    return batch


def measure(model: nn.Module, task_data: TaskData) -> dict[str, float]:
    """Mean loss and metrics in evaluation mode, on the test examples and on up to 10,000 training examples."""
    train, test = evaluate(model, task_data, "train", TRAIN_EVALUATED), evaluate(model, task_data, "test")
    named = {f"train_{name}": value for name, value in train.items()}
    return named | {f"test_{name}": value for name, value in test.items()}


@torch.no_grad()
def evaluate(model: nn.Module, task_data: TaskData, field: str, most: int | None = None) -> dict[str, float]:
    """The mean ``loss``, ``accuracy`` and other metrics of ``model`` in evaluation mode; its mode is restored.

    Args:
        field: ``train`` or ``test``.
        most: how many examples are used at most.
    """
    task, examples = task_data.task, getattr(task_data, field)
    count = len(examples) if most is None else min(most, len(examples))
    chunks = [slice(at, min(at + EVALUATION_BATCH, count)) for at in range(0, count, EVALUATION_BATCH)]
    sums: dict[str, Tensor] = {}
    with evaluation_mode(model):
        for x, y in examples.same_batches(chunks, derived_seed("evaluate")):
            with task.blaming("build"):
                output = model(x)
            if task.loss is functional.cross_entropy:
                with task.blaming("loss"):
                    loss = functional.cross_entropy(output, y, reduction="sum").double()
            else:
                loss = task_data.loss_of(output, y).double() * len(x)
            with task.blaming("metrics"):
                found = {name: torch.as_tensor(value) for name, value in task.metrics(output, y).items()}
                if "accuracy" not in found or "loss" in found:
                    raise ValueError(f"it must give accuracy, and no loss, got {', '.join(found) or 'nothing'}")
                parts = {name: value.double().sum() * (len(x) / value.numel()) for name, value in found.items()}
            for name, part in {"loss": loss, **parts}.items():
                sums[name] = sums[name] + part if name in sums else part
    means = {name: float(total) / count for name, total in sums.items()}
    if any(math.isnan(value) for name, value in means.items() if name != "loss") and math.isfinite(means["loss"]):
        raise ValueError(f"metrics must give numbers where the loss is finite, got {means}")
    return means
