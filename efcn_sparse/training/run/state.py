"""How far a run is: what its checkpoints cover, and whether its rows are all there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efcn_sparse.training.run.checkpoint import checkpoint_path, epochs_on_disk
from efcn_sparse.training.run.metrics import LAYERS, METRICS, covered, diverged, read_evaluations
from efcn_sparse.training.run.plan import Stage

_MOST_TOLD = 8  # stages, in a message


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        plan: the stages that the run is to have.
        kept: the epochs of the checkpoints of each stage that has some; latest: the last of them.
        diverged: the stages that have diverged, and at which epoch.
        lost: the epochs of each stage that checkpoints cover, and of which a row is missing.
        wrong: a sentence for each line of metrics.csv and layers.csv that is no row.
    """

    plan: Sequence[Stage]
    kept: dict[str, list[int]]
    latest: dict[str, int]
    diverged: dict[str, int]
    lost: dict[str, list[int]]
    wrong: list[str]

    @classmethod
    def read(cls, plan: Sequence[Stage], path: Path, layers: Sequence[str]) -> State:
        """The state of the run in ``path``; ``layers`` are those of every embedded net."""
        kept = epochs_on_disk(path)
        latest = {stage: epochs[-1] for stage, epochs in kept.items()}
        metrics, wrong = read_evaluations(path / "metrics.csv", METRICS)
        by_layer, wrong_by_layer = read_evaluations(path / "layers.csv", LAYERS)
        known = covered(metrics, latest)
        there = {row.key for row in (*known, *by_layer)}
        lost: dict[str, list[int]] = {}
        for stage in plan:
            wanted = ("", *(layers if stage.arm.embedded else ()))
            for epoch in range(stage.first, min(latest.get(stage.name, -1), stage.last) + 1):
                if any((stage.name, epoch, layer) not in there for layer in wanted):
                    lost.setdefault(stage.name, []).append(epoch)
        return cls(plan, kept, latest, diverged(known), lost, wrong + wrong_by_layer)

    def is_unfinished(self, stage: Stage) -> bool:
        """Whether something of the stage is still to be trained."""
        return self.latest.get(stage.name, -1) < stage.last and stage.name not in self.diverged

    def epochs_done(self, stage: Stage) -> int:
        """How many epochs of the stage need no training."""
        done = self.latest.get(stage.name, stage.first) if self.is_unfinished(stage) else stage.last
        return done - stage.first

    def snapshots_wanted(self, cnn: Stage) -> tuple[int, ...]:
        """The epochs of which a CNN lacks a checkpoint, so that what has not begun can begin.

        Those that it has not come to, and will not if it has diverged, are not among them.
        """
        begun, come = self.latest.keys() | self.diverged.keys(), self.latest.get(cnn.name, -1)
        waiting = [stage.first for stage in self.plan if stage.seed == cnn.seed and stage.name not in begun]
        there = self.kept.get(cnn.name, [])
        return tuple(sorted({epoch for epoch in waiting if epoch <= come} - set(there)))

    def check(self, path: Path) -> None:
        """Raise ``ValueError`` if rows have been lost."""
        if not self.lost:
            return
        told = [f"{name} {_epochs_text(epochs)}" for name, epochs in self.lost.items()]
        more = f" and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
        raise ValueError(
            f"metrics.csv and layers.csv of {path} must have a row for each epoch that its checkpoints cover, got none "
            f"of {', '.join(told[:_MOST_TOLD])}{more}: put the files back, or train these stages again from the "
            "checkpoints before with --repair (in Python, repair=True)"
        )

    def remove_unrecorded(self, path: Path) -> None:
        """Remove the checkpoints of each stage from its first lost row on."""
        for name, epochs in self.kept.items():
            for epoch in epochs if name in self.lost else ():
                if epoch >= self.lost[name][0]:
                    checkpoint_path(path, name, epoch).unlink()


def _epochs_text(epochs: list[int]) -> str:
    whole = epochs[-1] - epochs[0] + 1 == len(epochs)
    if len(epochs) == 1:
        return f"epoch {epochs[0]}"
    return f"epochs {epochs[0]} to {epochs[-1]}" + ("" if whole else f" ({len(epochs)} of them)")
