"""What the relax protocol runs, as data: one stage for each training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efcn_sparse.training.arms import CNN, FCN, Arm
from efcn_sparse.training.config import RelaxConfig


@dataclass(frozen=True)
class Stage:
    """One training run: ``arm`` with ``seed`` from epoch ``first`` to ``last``, kept at the epochs ``kept``.

    ``relax_epoch`` is the epoch at which the CNN was embedded, None for a net trained from scratch.
    """

    arm: Arm
    seed: int
    relax_epoch: int | None
    first: int
    last: int
    lr: float
    kept: tuple[int, ...]

    @property
    def name(self) -> str:
        """How its checkpoints are called, up to the epoch: ``efcn-full-seed0-t7``."""
        return stage_name(self.arm, self.seed, self.relax_epoch)

    @property
    def cnn(self) -> str:
        """The name of the stage that trains the CNN of the same seed."""
        return stage_name(CNN, self.seed, None)


def stage_name(arm: Arm | str, seed: int, relax_epoch: int | None) -> str:
    """The name of a stage, of which its checkpoints' names are made."""
    return f"{arm}-seed{seed}" + ("" if relax_epoch is None else f"-t{relax_epoch}")


def stages(config: RelaxConfig) -> list[Stage]:
    """Every training run of ``config`` in the order in which they run: a CNN before what is embedded from it."""
    plan: list[Stage] = []
    for seed in config.seeds:
        if CNN.name in config.arms:
            plan.append(_from_scratch(CNN, seed, config.control_epochs, config.lr, config.relax_times))
        if FCN.name in config.arms:
            plan.append(_from_scratch(FCN, seed, config.fcn_epochs, config.fcn_lr, ()))
        for time in config.relax_times if config.relaxed_arms else ():
            plan += [_relaxed(arm, seed, time, config) for arm in config.relaxed_arms]
    return plan


def _from_scratch(arm: Arm, seed: int, last: int, lr: float, snapshots: Sequence[int]) -> Stage:
    return Stage(arm, seed, None, 0, last, lr, tuple(sorted({0, *snapshots, last})))


def _relaxed(arm: Arm, seed: int, time: int, config: RelaxConfig) -> Stage:
    last = time + config.relax_epochs
    kept = {time, (time + last) // 2, last} if arm.embedded else {last}
    return Stage(arm, seed, time, time, last, config.relaxed_lr, tuple(sorted(kept)))
