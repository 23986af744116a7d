"""A trained net, out of its run directory."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from efcn_sparse.training.checkpoint import checkpoint_path, epochs_on_disk, load_checkpoint, stored_block_shapes
from efcn_sparse.training.nets import build_like
from efcn_sparse.training.plan import stage_name, stages
from efcn_sparse.training.run_directory import read_config


def load_arm(run_dir: str | Path, arm: str, seed: int, relax_epoch: int | None, epoch: int) -> nn.Module:
    """The net of one arm as it was after ``epoch``, in evaluation mode and on the CPU.

    Block shapes are those of the checkpoint, so runs of versions that chose others can be loaded.

    Args:
        run_dir: the folder that :func:`run_relax` wrote.
        arm: ``cnn``, ``cnn-relaxed``, ``elcn``, ``efcn-dilated<radius>``, ``efcn-grown<budget>``,
            ``efcn-lowrank<rank>``, ``efcn-full`` or ``fcn``.
        seed: one of the run's seeds.
        relax_epoch: the epoch at which the CNN was embedded; None for ``cnn`` and ``fcn``.
        epoch: one of :func:`kept_epochs`.

    Raises:
        ValueError: ``run_dir`` is no run, the run has no such arm, seed and relax epoch, or the checkpoint is damaged.
        FileNotFoundError: there is no checkpoint of that epoch; the message tells which there are.
    """
    config = read_config(run_dir)
    name = stage_name(arm, seed, relax_epoch)
    known = [stage.name for stage in stages(config)]
    if name not in known:
        raise ValueError(f"arm, seed and relax_epoch must name one of {', '.join(known)}, got {name}")
    path = checkpoint_path(Path(run_dir) / "checkpoints", name, epoch)
    if not path.is_file():
        kept = kept_epochs(run_dir, arm, seed, relax_epoch)
        raise FileNotFoundError(f"{name} must have a checkpoint of epoch {epoch}, got those of {kept} in {run_dir}")
    model = build_like(arm, config.preset, seed, stored_block_shapes(path))
    load_checkpoint(path, model)
    return model.eval()


def kept_epochs(run_dir: str | Path, arm: str, seed: int, relax_epoch: int | None) -> list[int]:
    """The epochs of which ``run_dir`` holds a checkpoint, increasing; empty if the arm has not begun."""
    return epochs_on_disk(Path(run_dir) / "checkpoints").get(stage_name(arm, seed, relax_epoch), [])
