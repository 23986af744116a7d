"""What the relax protocol runs, as data: snapshot epochs, arms, and one stage for each training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.embedding import Dilated, Grown, Local, LowRank, Support, parse_support

if TYPE_CHECKING:
    from efcn_sparse.training.config import RelaxConfig

CNN, FCN, ELCN, FULL, CONTROL = "cnn", "fcn", "elcn", "efcn-full", "cnn-relaxed"
ARMS = "cnn, fcn, elcn, efcn-dilated<radius>, efcn-grown<budget>, efcn-lowrank<rank>, efcn-full"
_EFCN = "efcn-"


def snapshot_epochs(epochs: int, count: int = 20) -> tuple[int, ...]:
    """The epochs at which the CNN is embedded: 0 and ``count`` log-spaced ones up to ``epochs``.

    It is the original code's ``np.unique(np.logspace(0, log10(epochs), 20).astype(int))``, rounding down included.

    Example:
        >>> snapshot_epochs(30, count=5)
        (0, 1, 2, 5, 12, 29)
    """
    if epochs < 1:
        return (0,)
    return (0, *(int(epoch) for epoch in np.unique(np.logspace(0, np.log10(epochs), count).astype(int))))


def support_of(arm: str) -> Support | None:
    """The support of an arm that is a CNN embedded at a relax time, None for any other name.

    Example:
        >>> support_of("elcn"), support_of("efcn-dilated2"), support_of("efcn-grown1.5"), support_of("cnn")
        (Local(), Dilated(radius=2), Grown(budget=1.5, start=Local()), None)
    """
    if arm == ELCN:
        return Local()
    try:
        support = parse_support(arm.removeprefix(_EFCN)) if arm.startswith(_EFCN) else None
    except ValueError:
        return None
    named_otherwise = isinstance(support, Local) or support == Dilated(0) or f"{_EFCN}{support}" != arm
    return None if named_otherwise else support


def is_embedded(arm: str) -> bool:
    """Whether ``arm`` is a CNN embedded at a relax time."""
    return support_of(arm) is not None


def size_order(arm: str) -> tuple[int, float, int]:
    """A key that sorts embedded arms: eLCN, dilated by radius, grown by budget, low rank by rank, full."""
    support = support_of(arm)
    if isinstance(support, Dilated):
        return 1, support.radius, 0
    if isinstance(support, (Grown, LowRank)):
        started = support.start.radius if isinstance(support.start, Dilated) else 0
        return (2, support.budget, started) if isinstance(support, Grown) else (3, support.rank, started)
    return (0 if isinstance(support, Local) else 4), 0, 0


@dataclass(frozen=True)
class Stage:
    """One training run: ``arm`` with ``seed`` from epoch ``first`` to ``last``, kept at the epochs ``kept``.

    ``relax_epoch`` is the epoch at which the CNN was embedded, None for a net trained from scratch.
    """

    arm: str
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


def stage_name(arm: str, seed: int, relax_epoch: int | None) -> str:
    """The name of a stage, of which its checkpoints' names are made."""
    return f"{arm}-seed{seed}" + ("" if relax_epoch is None else f"-t{relax_epoch}")


def stages(config: RelaxConfig) -> list[Stage]:
    """Every training run of ``config`` in the order in which they run: a CNN before what is embedded from it."""
    plan: list[Stage] = []
    for seed in config.seeds:
        if CNN in config.arms:
            plan.append(_from_scratch(CNN, seed, config.control_epochs, config.lr, config.relax_times))
        if FCN in config.arms:
            plan.append(_from_scratch(FCN, seed, config.fcn_epochs, config.fcn_lr, ()))
        for time in config.relax_times if config.relaxed_arms else ():
            plan += [_relaxed(arm, seed, time, config) for arm in config.relaxed_arms]
    return plan


def _from_scratch(arm: str, seed: int, last: int, lr: float, snapshots: Sequence[int]) -> Stage:
    return Stage(arm, seed, None, 0, last, lr, tuple(sorted({0, *snapshots, last})))


def _relaxed(arm: str, seed: int, time: int, config: RelaxConfig) -> Stage:
    last = time + config.relax_epochs
    kept = {time, (time + last) // 2, last} if is_embedded(arm) else {last}
    return Stage(arm, seed, time, time, last, config.relaxed_lr, tuple(sorted(kept)))
