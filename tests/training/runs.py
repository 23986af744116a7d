"""What two runs have to have in common to be the same run, and how one is cut off."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from efcn_sparse.training import RelaxConfig
from efcn_sparse.training.data.load import preset_task
from efcn_sparse.training.run.epoch import TaskData
from efcn_sparse.training.run.metrics import MetricsFile
from efcn_sparse.training.run.source import DataBySeed

DIGITS = preset_task(RelaxConfig(preset="digits"))


def task_data(config: RelaxConfig, seed: int) -> TaskData:
    """The task of a preset with its examples."""
    return DataBySeed(preset_task(config), config).of_seed(seed)


def rows(run_dir: Path, name: str) -> list[dict[str, str]]:
    """The rows of ``name``.csv, but for how long each took."""
    with (run_dir / f"{name}.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def numbers(run_dir: Path) -> list[dict[str, str]]:
    """Everything in the two CSV files except how long it took."""
    return rows(run_dir, "metrics") + rows(run_dir, "layers")


def checkpoints(run_dir: Path) -> dict[str, bytes]:
    """The bytes of every checkpoint, by the name of its file."""
    return {path.name: path.read_bytes() for path in (run_dir / "checkpoints").iterdir()}


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
