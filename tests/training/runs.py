"""Tiny runs of every kind, what two have to have in common to be the same run, and how one is cut off."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efcn_sparse.fused import layer_update
from efcn_sparse.training import RelaxConfig, run_relax
from efcn_sparse.training.run.epoch import TaskData
from efcn_sparse.training.run.metrics import MetricsFile
from efcn_sparse.training.run.source import DataBySeed, preset_task

DIGITS = preset_task(RelaxConfig(preset="digits"))
DILATED, GROWN, LOWRANK = "efcn-dilated1", "efcn-grown1.5", "efcn-lowrank3"


def tiny(*arms: str, **settings: Any) -> RelaxConfig:
    """Epochs of three steps, which carry a momentum."""
    common = dict(
        seeds=(0,), cnn_epochs=1, relax_epochs=2, fcn_epochs=2, relax_times=(1,), momentum=0.9, lr=0.02, batch_size=20,
        train_limit=60, test_limit=40, threads=1,
    )  # fmt: skip
    return RelaxConfig.from_preset("digits", arms=arms, **{**common, **settings})


KINDS = {
    "plain": tiny("cnn", "elcn", "fcn", cnn_epochs=2, relax_epochs=3),
    "fused": tiny("cnn", DILATED, "fcn", weight_decay=0.01, fused=True),
    "grown": tiny("cnn", DILATED, GROWN, relax_epochs=4, growth_every=2),
    "low-rank": tiny("cnn", "elcn", LOWRANK, carry_momentum=True),
    "selective": tiny(
        "cnn", DILATED, cnn_epochs=2, lr=0.05, carry_momentum=True, copies="sum",
        parts=("off-local:rate=2,l1=1e-3,beta=2", "conv1/untied:rate=0"),
    ),
    "diverging": tiny(
        "cnn", "fcn", "elcn", "efcn-grown1.3", "efcn-lowrank2", fcn_epochs=1, relax_times=(0, 1), growth_every=2,
        momentum=0.0, lr=1e9, relaxed_lr=0.1, fcn_lr=0.1, train_limit=100, test_limit=20,
    ),
}  # fmt: skip


@contextlib.contextmanager
def slices_of(kind: str) -> Iterator[None]:
    """Fused updates in many slices, if that is the kind of run."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "fused":
            patch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 1 << 17)
        yield


def task_data(config: RelaxConfig, seed: int) -> TaskData:
    """The task of a preset with its examples."""
    return DataBySeed(preset_task(config), config).of_seed(seed)


def rows(run_dir: Path, name: str = "metrics", **where: object) -> list[dict[str, str]]:
    """The rows of ``name``.csv with these cells, but for how long each took."""
    with (run_dir / f"{name}.csv").open(newline="") as file:
        found = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    return [row for row in found if all(row[key] == str(value) for key, value in where.items())]


def numbers(run_dir: Path) -> list[dict[str, str]]:
    """Everything in the two CSV files except how long it took."""
    return rows(run_dir, "metrics") + rows(run_dir, "layers")


def checkpoints(run_dir: Path) -> dict[str, bytes]:
    """The bytes of every checkpoint, by the name of its file."""
    return {path.name: path.read_bytes() for path in (run_dir / "checkpoints").iterdir()}


def assert_same(run_dir: Path, other: Path) -> None:
    """Two runs have the same numbers and the same checkpoints, bit by bit."""
    assert numbers(run_dir) == numbers(other)
    assert checkpoints(run_dir) == checkpoints(other)


def cut_short(count: int, *run: Any, arm: str | None = None, checkpoint_seconds: float = 0.0) -> None:
    """Run the protocol with these arguments until so many rows of metrics.csv, of ``arm`` or of any, are written."""
    append, seen = MetricsFile.append, 0

    def cut(self, rows):
        nonlocal seen
        append(self, rows)
        if "lr" in self._columns and arm in (None, rows[0]["arm"]):
            seen += 1
            if seen >= count:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "append", cut)
        with pytest.raises(KeyboardInterrupt):
            run_relax(*run, quiet=True, checkpoint_seconds=checkpoint_seconds)
