"""Where a stage writes what it measures: metrics.csv and layers.csv, its checkpoints, and the screen."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from torch import nn
from torch.optim import Optimizer

from efcn_sparse.checkpoint.atomic import write_text_atomically
from efcn_sparse.training.checkpoint import checkpoint_path, epochs_on_disk, save_checkpoint
from efcn_sparse.training.plan import Stage, stage_name

WEIGHTS = ("delta", "tied", "untied", "off_local")
SUPPORT = ("stored", "leak", "captured")  # files of older runs lack them
METRICS = (
    "arm", "seed", "relax_epoch", "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    *WEIGHTS, *SUPPORT, "seconds",
)  # fmt: skip
LAYERS = ("arm", "seed", "relax_epoch", "epoch", "layer", *WEIGHTS, *SUPPORT)

Row = Mapping[str, object]


class MetricsFile:
    """One CSV file with the columns ``columns``; floats are written so that reading them gives the same bits.

    Args:
        path: the file; it is made if it is not there.
        epochs: the epoch of the latest checkpoint of each stage that has one. Rows past it, rows of other stages
            and a torn last line are what a kill left, and are removed.

    A file of an older run, which lacks the columns ``SUPPORT``, gets them; they are empty in its rows.

    Raises:
        ValueError: the file has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], epochs: Mapping[str, int]) -> None:
        self._path, self._columns = path, tuple(columns)
        rows = [row for row in _whole_rows(path, self._columns) if _is_covered(row, epochs)]
        text = _as_csv([self._columns, *([row.get(name, "") for name in self._columns] for row in rows)])
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text_atomically(path, text)
        self._file: TextIO = path.open("a", encoding="utf-8", newline="")

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; missing columns and None become empty."""
        self._file.write(_as_csv([[_cell(row.get(name)) for name in self._columns] for row in rows]))
        self._file.flush()

    def sync(self) -> None:
        """Force the rows to the disk; a checkpoint that covers them is written only after this."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of metrics.csv or layers.csv, as text."""
    return _whole_rows(path, None)


def are_columns(found: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether ``found`` are the columns of a file that should have ``columns``: these, or an older run's."""
    return tuple(found) in (tuple(columns), tuple(name for name in columns if name not in SUPPORT))


def _whole_rows(path: Path, columns: tuple[str, ...] | None) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if columns is not None and reader.fieldnames is not None and not are_columns(reader.fieldnames, columns):
        raise ValueError(f"{path} must have the columns {','.join(columns)}, got {','.join(reader.fieldnames)}")
    return [row for row in reader if None not in row and None not in row.values()]


def _is_covered(row: Mapping[str, str], epochs: Mapping[str, int]) -> bool:
    try:
        relax_epoch = int(row["relax_epoch"]) if row["relax_epoch"] else None
        return int(row["epoch"]) <= epochs.get(stage_name(row["arm"], int(row["seed"]), relax_epoch), -1)
    except ValueError:
        return False


def _cell(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


@dataclass
class Record:
    """What a run writes to while it trains."""

    metrics: MetricsFile
    layers: MetricsFile
    progress: Progress
    checkpoints: Path

    def save(self, stage: Stage, model: nn.Module, optimizer: Optimizer, epoch: int) -> None:
        """Write a checkpoint, and remove those of the stage that served only for going on.

        The order on the disk is: rows, then the checkpoint that covers them, then the removal of the one before. So a
        checkpoint never lacks its rows, and rows past it are what a kill left.
        """
        self.metrics.sync()
        self.layers.sync()
        save_checkpoint(checkpoint_path(self.checkpoints, stage.name, epoch), model, optimizer)
        self.forget(stage)

    def forget(self, stage: Stage) -> None:
        """Remove the checkpoints of a stage that are not to be kept, except the latest."""
        for epoch in epochs_on_disk(self.checkpoints)[stage.name][:-1]:
            if epoch not in stage.kept:
                checkpoint_path(self.checkpoints, stage.name, epoch).unlink()


class Progress:
    """Counts epochs over all stages and shows accuracy and δ: a bar on a terminal, elsewhere a plain line per stage.

    Args:
        epochs: how many epochs there are to train in all; ``done`` of them are behind us.
        quiet: show nothing at all.
    """

    def __init__(self, epochs: int, done: int, *, quiet: bool = False) -> None:
        self._quiet, self._bar = quiet, None if quiet else _bar(epochs, done)

    def show(self, stage: Stage, row: Mapping[str, Any], *, advance: int) -> None:
        """``row`` of metrics.csv, ``advance`` epochs after the last one that was shown."""
        if self._bar is not None:
            self._bar.set_postfix_str(_measured(row), refresh=False)
            self._bar.set_description_str(f"{stage.name} epoch {row['epoch']}/{stage.last}", refresh=False)
            self._bar.update(advance)

    def finished(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """``row`` is the last one of ``stage``."""
        if self._bar is None and not self._quiet:
            print(f"{stage.name}: epoch {row['epoch']}, {_measured(row)}", flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _measured(row: Mapping[str, Any]) -> str:
    accuracy = f"test accuracy {100 * float(row['test_accuracy']):.1f}%"
    return accuracy if row.get("delta") in (None, "") else f"{accuracy}, δ {float(row['delta']):.3f}"


def _bar(epochs: int, done: int) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(total=epochs, initial=done, unit="epoch", dynamic_ncols=True, disable=None)
