"""A run directory of ``efcn-sparse relax``, read back as arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efcn_sparse.analysis.looks import Look, looks_of
from efcn_sparse.checkpoint.atomic import read_json
from efcn_sparse.training.arms import Arm
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.run.checkpoint import epochs_on_disk
from efcn_sparse.training.run.metrics import KEYS, LAYERS, METRICS, TORN, Evaluation, read_evaluations
from efcn_sparse.training.run.plan import Stage, stages
from efcn_sparse.training.run.run_directory import read_config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Trace:
    """The evaluations of one training run, in the order of its epochs.

    Attributes:
        arm, seed: which run; ``relax_epoch`` is None for arms that are not embedded.
        layer: the layer's name in layers.csv, empty in metrics.csv.
        epochs: int64 ``[n]``, increasing.
        columns: float64 ``[n]`` each; nan where the file has no number.
    """

    arm: Arm
    seed: int
    relax_epoch: int | None
    layer: str
    epochs: Ints
    columns: dict[str, Floats]

    @property
    def diverged(self) -> bool:
        """Whether its training ended since its loss was no finite number any more."""
        return not math.isfinite(self.columns["train_loss"][-1])

    def final(self, column: str) -> float:
        """The last number of ``column``."""
        return float(self.columns[column][-1])

    def mean(self, column: str) -> float:
        """The mean of ``column``; nan where there are none."""
        known = self.columns[column][np.isfinite(self.columns[column])]
        return float(known.mean()) if known.size else math.nan


@dataclass(frozen=True)
class Run:
    """Everything that a report reads except the checkpoints.

    Attributes:
        path: the run directory.
        config: what was asked for; ``plan`` is the training runs that follow from it.
        environment: environment.json, empty if missing.
        traces: one per arm, seed and relax epoch, of metrics.csv.
        layer_traces: one per arm, seed, relax epoch and layer, of layers.csv.
        problems: what was missing or could not be read, one sentence each.
    """

    path: Path
    config: RelaxConfig
    plan: tuple[Stage, ...]
    environment: dict[str, Any]
    traces: tuple[Trace, ...]
    layer_traces: tuple[Trace, ...]
    problems: tuple[str, ...] = field(default=())

    @functools.cached_property
    def arms(self) -> list[Arm]:
        """The arms that have been evaluated, from the CNN over the supports to the FCN."""
        return sorted({trace.arm for trace in self.traces}, key=lambda arm: arm.order)

    @functools.cached_property
    def looks(self) -> dict[Arm, Look]:
        """How each of the arms is drawn and named, the same in every figure and table."""
        return looks_of([*self.arms, *(stage.arm for stage in self.plan)])

    @property
    def embedded_arms(self) -> list[Arm]:
        """The embedded ones of the arms: those whose deviation from the CNN was measured."""
        return [arm for arm in self.arms if arm.embedded]

    def relax_epochs(self, arms: Iterable[Arm] | None = None) -> list[int]:
        """The relax times of ``arms`` (of all arms if None), increasing."""
        chosen = set(self.arms if arms is None else arms)
        return sorted({t.relax_epoch for t in self.traces if t.arm in chosen and t.relax_epoch is not None})

    def of(self, arm: Arm, relax_epoch: int | None = None) -> list[Trace]:
        """The traces of one arm and relax time, one per seed."""
        return [trace for trace in self.traces if (trace.arm, trace.relax_epoch) == (arm, relax_epoch)]

    def layers_of(self, arm: Arm, layer: str, relax_epoch: int | None) -> list[Trace]:
        """The per-layer traces of one arm, layer and relax time, one per seed."""
        key = (arm, layer, relax_epoch)
        return [trace for trace in self.layer_traces if (trace.arm, trace.layer, trace.relax_epoch) == key]

    def layer_names(self, arm: Arm) -> list[str]:
        """The embedded layers of an arm, in the order of layers.csv."""
        return list(dict.fromkeys(trace.layer for trace in self.layer_traces if trace.arm == arm))


def read_run(run_dir: str | Path) -> Run:
    """Read a run directory; files that a partial run does not have yet become entries of ``problems``.

    Args:
        run_dir: the folder that ``efcn-sparse relax`` wrote; it must hold config.json.

    Raises:
        ValueError: ``run_dir`` is no run directory, or one of its files is damaged.
    """
    path = Path(run_dir)
    config = read_config(path)
    problems: list[str] = []
    environment: dict[str, Any] = {}
    if (path / "environment.json").is_file():
        environment = read_json(path / "environment.json")
    else:
        problems.append("environment.json is missing.")
    traces = _read_traces(path / "metrics.csv", METRICS, problems)
    layer_traces = _read_traces(path / "layers.csv", LAYERS, problems)
    return Run(path, config, tuple(stages(config)), environment, traces, layer_traces, tuple(problems))


def _read_traces(path: Path, columns: tuple[str, ...], problems: list[str]) -> tuple[Trace, ...]:
    """The traces of a CSV; a row that appears again (after a resume) replaces the earlier one."""
    if not path.is_file():
        why = "nothing has been evaluated yet"
        if epochs_on_disk(path.parent):
            why = "it was lost, for there are checkpoints; relax with --repair trains their epochs again"
        problems.append(f"{path.name} is missing: {why}.")
        return ()
    evaluations, wrong = read_evaluations(path, columns)
    for sentence in wrong:
        if not sentence.endswith(TORN):
            raise ValueError(sentence)
        problems.append(f"The last line of {path.name} is incomplete and was left out.")
    if not evaluations and not wrong:
        problems.append(f"{path.name} holds no evaluations yet.")
    rows: dict[tuple[Arm, int, int | None, str], dict[int, Evaluation]] = {}
    for one in evaluations:
        rows.setdefault((one.arm, one.seed, one.relax_epoch, one.layer), {})[one.epoch] = one
    numbers = [name for name in columns if name not in KEYS]
    return tuple(_trace(key, [found[epoch] for epoch in sorted(found)], numbers) for key, found in rows.items())


def _trace(key: tuple[Arm, int, int | None, str], evaluations: list[Evaluation], columns: list[str]) -> Trace:
    named = {name: np.array([one.number(name) for one in evaluations], dtype=np.float64) for name in columns}
    if "train_loss" in named:  # what a net that has diverged guesses is no accuracy
        lost = ~np.isfinite(named["train_loss"])
        for name in ("train_accuracy", "test_accuracy", "test_loss"):
            named[name][lost] = np.nan
    support = key[0].support
    if support is not None and support.low_rank:  # older versions took for ignored what U and V follow
        named |= {name: np.full(len(evaluations), np.nan) for name in ("leak", "captured") if name in named}
    return Trace(*key, epochs=np.array([one.epoch for one in evaluations], dtype=np.int64), columns=named)
