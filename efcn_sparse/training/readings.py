"""metrics.csv and layers.csv: appended as training goes, repaired from the checkpoints after a kill."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from efcn_sparse.checkpoint.atomic import write_text_atomically
from efcn_sparse.training.plan import stage_name

WEIGHTS = ("delta", "tied", "untied", "off_local")
SUPPORT = ("stored", "leak", "captured")  # files of older runs lack them
METRICS = (
    "arm", "seed", "relax_epoch", "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    *WEIGHTS, *SUPPORT, "seconds",
)  # fmt: skip
LAYERS = ("arm", "seed", "relax_epoch", "epoch", "layer", *WEIGHTS, *SUPPORT)

Row = Mapping[str, object]


class Readings:
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
    """The whole rows of a CSV of readings, as text."""
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
