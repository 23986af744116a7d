"""What two runs have to have in common to be the same run, and how one is cut off."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from efcn_sparse.training import RelaxConfig, run_relax
from efcn_sparse.training.run.epoch import TaskData
from efcn_sparse.training.run.metrics import MetricsFile
from efcn_sparse.training.run.source import DataBySeed, preset_task

DIGITS = preset_task(RelaxConfig(preset="digits"))


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
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, count, arm)
        with pytest.raises(KeyboardInterrupt):
            run_relax(*run, quiet=True, checkpoint_seconds=checkpoint_seconds)


def interrupt_after(patch: pytest.MonkeyPatch, count: int, arm: str | None = None) -> None:
    """Raise ``KeyboardInterrupt`` once so many rows of metrics.csv, of ``arm`` or of any, have been written."""
    append, seen = MetricsFile.append, 0

    def cut(self, rows):
        nonlocal seen
        append(self, rows)
        if "lr" in self._columns and arm in (None, rows[0]["arm"]):
            seen += 1
            if seen >= count:
                raise KeyboardInterrupt

    patch.setattr(MetricsFile, "append", cut)
