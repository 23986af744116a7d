"""The optimizer of a stage, and the schedule of its learning rate."""

from __future__ import annotations

import glob
import warnings

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.linear import SparseLinear
from efcn_sparse.training.arms import Arm
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.optim.relaxing import parts_of_layers
from efcn_sparse.training.optim.selective import SelectiveSGD
from efcn_sparse.training.run.plan import Stage
from efcn_sparse.training.task import Task


def optimizer_of(config: RelaxConfig, task: Task, arm: Arm, lr: float, model: nn.Module) -> Optimizer:
    """The optimizer that ``config`` and ``task`` give an arm: selective for embedded nets where ``config`` asks.

    Law: with ``config.fused``, inside the backward pass where there are sparse layers, steps give the same numbers.
    """
    momentum, decay = config.momentum, config.weight_decay
    if config.selective and arm.embedded:
        parts = parts_of_layers(task.convolutions, config.relaxing, config.parts, decay)
        layers = {glob.escape(name): vars(one) for name, one in parts.items()}
        return SelectiveSGD(model, lr, momentum=momentum, weight_decay=decay, copies=config.copies, layers=layers)

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        if task.optimizer is None:
            return SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay)
        with task.blaming("optimizer"):
            made = task.optimizer(parameters, lr)
        if not isinstance(made, Optimizer):
            raise ValueError(f"optimizer must give a torch.optim.Optimizer, got {type(made).__name__}")
        return made

    if config.fused and any(isinstance(module, SparseLinear) for module in model.modules()):
        return FusedOptimizer(model, make)
    return make(list(model.parameters()))


def scheduler_of(task: Task, optimizer: Optimizer, stage: Stage, per_epoch: int, epoch: int) -> LRScheduler | None:
    """The scheduler of a stage as it is after ``epoch``; it is stepped so far, whatever state it keeps.

    Args:
        per_epoch: how many steps an epoch has.
    """
    if task.schedule is None:
        return None
    with warnings.catch_warnings(), task.blaming("schedule"):
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        scheduler = task.schedule(optimizer, max(1, per_epoch * (stage.last - stage.first)))
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"it must give a torch.optim.lr_scheduler.LRScheduler, got {type(scheduler).__name__}")
        for _ in range(per_epoch * (epoch - stage.first)):
            scheduler.step()
    return scheduler
