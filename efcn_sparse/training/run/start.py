"""What a stage begins or goes on with: its net, optimizer and growth, from the CNN or from its latest checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from efcn_sparse.embedding import LowRankPart, start_low_rank
from efcn_sparse.gradients import record_factors
from efcn_sparse.growth import Growth
from efcn_sparse.landscape.modes import evaluation_mode
from efcn_sparse.training.arms import CNN
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data.images import derived_seed, order_of_epoch
from efcn_sparse.training.optim.carry import carry_state
from efcn_sparse.training.run.checkpoint import checkpoint_path, load_checkpoint, stored_block_shapes
from efcn_sparse.training.run.epoch import TaskData, Training
from efcn_sparse.training.run.nets import build_like, embed_as
from efcn_sparse.training.run.optimizer import optimizer_of, scheduler_of
from efcn_sparse.training.run.plan import Stage

_GROWTH_ENDS = 0.75  # of the training, as in RigL (Evci et al. 2020)


def start(config: RelaxConfig, stage: Stage, task_data: TaskData, run_dir: Path, epoch: int | None) -> Training:
    """The training of ``stage`` as it was at its checkpoint of ``epoch``.

    None: as it begins, from scratch or from the CNN at its relax time.
    """
    task, per_epoch = task_data.task, task_data.steps(config.batch_size)
    if epoch is not None:
        path = checkpoint_path(run_dir, stage.name, epoch)
        model = build_like(stage.arm, task, stage.seed, stored_block_shapes(path)).to(config.device)
        optimizer = optimizer_of(config, task, stage.arm, stage.lr, model)
        # before the checkpoint is loaded: a scheduler begins with the rate that it finds
        scheduler = scheduler_of(task, optimizer, stage, per_epoch, epoch)
        load_checkpoint(path, model, optimizer)
        growth = _growth(config, stage, model, optimizer, per_epoch, epoch)
        return Training(task_data, config.batch_size, stage.seed, model, optimizer, scheduler, growth)
    of_cnn = checkpoint_path(run_dir, stage.cnn, stage.first)
    if stage.relax_epoch is None:
        model = build_like(stage.arm, task, stage.seed)
    else:
        cnn = task.fresh(stage.seed)
        load_checkpoint(of_cnn, cnn)
        model = embed_as(stage.arm, cnn, task)
    model = model.to(config.device)
    _begin_low_rank(model, task_data, config.batch_size, stage)
    optimizer = optimizer_of(config, task, stage.arm, stage.lr, model)
    if config.carry_momentum and stage.relax_epoch is not None:  # what the CNN had at that epoch; at epoch 0 none
        cnn = task.fresh(stage.seed).to(config.device)
        cnn_optimizer = optimizer_of(config, task, CNN, config.lr, cnn)
        load_checkpoint(of_cnn, cnn, cnn_optimizer)
        carry_state(cnn, cnn_optimizer, model, optimizer)
    scheduler = scheduler_of(task, optimizer, stage, per_epoch, stage.first)
    growth = _growth(config, stage, model, optimizer, per_epoch, stage.first)
    return Training(task_data, config.batch_size, stage.seed, model, optimizer, scheduler, growth)


def _begin_low_rank(model: nn.Module, task_data: TaskData, batch_size: int, stage: Stage) -> None:
    """Turn V of each low-rank part along the gradient of the first batch; other nets are left as they are.

    The gradient is taken in evaluation mode, so that statistics of batches stay as they are. No optimizer may be fused
    with the model yet.
    """
    if not any(isinstance(module, LowRankPart) for module in model.modules()):
        return
    seed, epoch = stage.seed, stage.first + 1
    chosen = order_of_epoch(seed, epoch, len(task_data.train))[:batch_size]
    ((x, y),) = task_data.train.same_batches([chosen], derived_seed("loader", seed, epoch))
    with evaluation_mode(model), torch.enable_grad(), record_factors(model) as factors:
        task_data.loss(model, x, y).backward()
    model.zero_grad(set_to_none=True)
    start_low_rank(model, factors)


def check_growth(config: RelaxConfig, plan: Sequence[Stage], per_epoch: int) -> None:
    """Raise ``ValueError`` where the training of an arm whose blocks move ends before the first move."""
    for stage in plan:
        steps, until = per_epoch * (stage.last - stage.first), _last_growth(stage, per_epoch)
        if stage.arm.moves_blocks and steps and config.growth_every >= until:
            raise ValueError(
                f"growth_every must be less than {until}, three quarters of the {steps} steps that {stage.arm} takes, "
                f"or no block ever moves, got {config.growth_every}"
            )


def _last_growth(stage: Stage, per_epoch: int) -> int:
    return max(1, int(_GROWTH_ENDS * per_epoch * (stage.last - stage.first)))


def _growth(
    config: RelaxConfig, stage: Stage, model: nn.Module, optimizer: Optimizer, per_epoch: int, epoch: int
) -> Growth | None:
    """The growth of an arm whose blocks move, as it is after ``epoch``; None for other arms."""
    if not stage.arm.moves_blocks:
        return None
    until = _last_growth(stage, per_epoch)
    growth = Growth(model, optimizer, every=config.growth_every, exchange=config.growth_exchange, until=until)
    steps = per_epoch * (epoch - stage.first)
    growth.load_state_dict({"steps": steps, "placed": min(steps, until - 1) >= config.growth_every})
    return growth
