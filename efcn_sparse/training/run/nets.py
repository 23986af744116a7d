"""The net of each arm: built, or loaded from a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.default_device import on_cpu
from efcn_sparse.embedding import EmbeddedConv, embed
from efcn_sparse.training.arms import FCN, Arm
from efcn_sparse.training.data.images import derived_seed
from efcn_sparse.training.run.checkpoint import checkpoint_path, epochs_on_disk, load_checkpoint, stored_block_shapes
from efcn_sparse.training.run.plan import stage_name, stages
from efcn_sparse.training.run.run_directory import read_config
from efcn_sparse.training.run.source import Source
from efcn_sparse.training.task import Task

BlockShapes = Mapping[str, tuple[int, int]]


def embed_as(arm: Arm, cnn: nn.Module, task: Task, block_shapes: BlockShapes | None = None) -> nn.Module:
    """A copy of ``cnn`` embedded with the support of ``arm``; ``cnn`` itself if the arm is a CNN."""
    if arm.support is None:
        return cnn
    layers = {name: dict(support=arm.support, block_shape=shape) for name, shape in (block_shapes or {}).items()}
    return embed(cnn, task.example, support=arm.support, layers=layers)


def build_like(arm: Arm, task: Task, seed: int, block_shapes: BlockShapes | None = None) -> nn.Module:
    """A net of ``arm``'s architecture; for arms that start from a CNN, from its initial weights.

    The standard FCN has the CNN's widths, every convolution a full matrix, initialized like :class:`torch.nn.Linear`.
    An entry that would read zero padding does not exist, so the fan-in of every unit is the whole input.

    Args:
        block_shapes: of the layers that a checkpoint holds, which an older choice by cost may have made otherwise;
            None chooses them by cost.
    """
    model = embed_as(arm, task.fresh(seed), task, block_shapes)
    if arm == FCN:
        with torch.random.fork_rng(devices=[]), on_cpu():
            torch.default_generator.manual_seed(derived_seed("fcn", seed))
            for module in model.modules():
                if isinstance(module, EmbeddedConv):
                    module.linear.reset_parameters()
                elif isinstance(module, nn.Linear):
                    module.reset_parameters()
        weights_were_written()
    return model


def load_arm(
    run_dir: str | Path,
    arm: Arm | str,
    seed: int,
    relax_epoch: int | None,
    epoch: int,
    *,
    task: Task | None = None,
) -> nn.Module:
    """The net of one arm as it was after ``epoch``, in evaluation mode and on the CPU.

    Block shapes are those of the checkpoint, so runs of versions that chose others can be loaded.

    Args:
        run_dir: the folder that :func:`run_relax` wrote.
        arm: ``cnn``, ``cnn-relaxed``, ``elcn``, ``efcn-dilated<radius>``, ``efcn-grown<budget>``,
            ``efcn-lowrank<rank>``, ``efcn-full`` or ``fcn``.
        seed: one of the run's seeds.
        relax_epoch: the epoch at which the CNN was embedded; None for ``cnn`` and ``fcn``.
        epoch: one of :func:`kept_epochs`.
        task: of the run, if it is not a preset's.

    Raises:
        ValueError: ``run_dir`` is no run, ``task`` is missing, the run has no such arm, seed and relax epoch, or the
            checkpoint is damaged.
        FileNotFoundError: there is no checkpoint of that epoch; the message tells which there are.
    """
    config = read_config(run_dir)
    name = stage_name(arm, seed, relax_epoch)
    known = [stage.name for stage in stages(config)]
    if name not in known:
        raise ValueError(f"arm, seed and relax_epoch must name one of {', '.join(known)}, got {name}")
    path = checkpoint_path(run_dir, name, epoch)
    if not path.is_file():
        kept = kept_epochs(run_dir, arm, seed, relax_epoch)
        raise FileNotFoundError(f"{name} must have a checkpoint of epoch {epoch}, got those of {kept} in {run_dir}")
    model = build_like(Arm.parse(str(arm)), Source(task).load(config), seed, stored_block_shapes(path))
    load_checkpoint(path, model)
    return model.eval()


def kept_epochs(run_dir: str | Path, arm: Arm | str, seed: int, relax_epoch: int | None) -> list[int]:
    """The epochs of which ``run_dir`` holds a checkpoint, increasing; empty if the arm has not begun."""
    return epochs_on_disk(run_dir).get(stage_name(arm, seed, relax_epoch), [])
