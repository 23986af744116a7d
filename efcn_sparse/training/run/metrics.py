"""metrics.csv and layers.csv, to which each stage's own files are added; checked against the checkpoints."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from efcn_sparse.checkpoint.atomic import open_to_append, write_text_atomically
from efcn_sparse.training.arms import Arm
from efcn_sparse.training.run.plan import stage_name

WEIGHTS = ("delta", "tied", "untied", "off_local")
SUPPORT = ("stored", "leak", "captured")
LOCALITY = ("participation", "gyration", "non_locality")
METRICS = (
    "arm", "seed", "relax_epoch", "epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    *WEIGHTS, *SUPPORT, "seconds",
)  # fmt: skip
LAYERS = ("arm", "seed", "relax_epoch", "epoch", "layer", *WEIGHTS, *SUPPORT, *LOCALITY)
_LATER = (*SUPPORT, *LOCALITY)  # what files of older runs may lack

STAGES = "stages"  # the folder of the stages' own files
KEYS = ("arm", "seed", "relax_epoch", "epoch", "layer")
_OWN = re.compile(r"(?:train|test)_(?!loss$|accuracy$)\w+")  # metrics of a task's own
_MOST = 2**31  # of seeds and epochs in a file
_MOST_TOLD = 60  # characters of a wrong cell, in messages

TORN = "must end with a line break, got an incomplete last line"

Row = Mapping[str, object]


class Evaluation(NamedTuple):
    """A row of metrics.csv, or of layers.csv, where ``layer`` is not empty."""

    arm: Arm
    seed: int
    relax_epoch: int | None
    epoch: int
    layer: str
    cells: dict[str, str]

    @property
    def stage(self) -> str:
        """The name of the stage that it belongs to."""
        return stage_name(self.arm, self.seed, self.relax_epoch)

    @property
    def key(self) -> tuple[str, int, str]:
        """The stage, the epoch and the layer."""
        return self.stage, self.epoch, self.layer

    def number(self, column: str) -> float:
        """What stands in a column; nan where it is empty or missing."""
        text = self.cells.get(column)
        return float(text) if text else math.nan


def part_path(run_dir: Path, stage: str, name: str) -> Path:
    """Where a stage writes its rows of ``name`` while it is trained: ``<run_dir>/stages/<stage>.metrics.csv``."""
    return run_dir / STAGES / f"{stage}.{name}"


def read_evaluations(path: Path, columns: Sequence[str]) -> tuple[list[Evaluation], list[str]]:
    """The rows of a run's file and of its stages' parts, in their order, and a sentence for each line that is none.

    The file of an older run may lack the columns ``LOCALITY``, or these and ``SUPPORT``; that of a task with metrics of
    its own has more. What follows the last line break, which a kill may have torn, is one of the lines that are none,
    but not in a part, which is being written.

    Raises:
        ValueError: the file has other columns.
    """
    # Parts first: a row moves from there to the file, and is removed only then.
    parts = [row for part in sorted(path.parent.glob(f"{STAGES}/*.{path.name}")) for row in _read(part, columns)[0]]
    rows, wrong = _read(path, columns)
    there = {row.key for row in rows}
    return rows + [row for row in parts if row.key not in there], wrong


def _read(path: Path, columns: Sequence[str]) -> tuple[list[Evaluation], list[str]]:
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return [], []
    whole, torn = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    reader = csv.reader(io.StringIO(whole, newline=""))
    rows, wrong = list[Evaluation](), list[str]()
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
            if cells is None:
                break
            if header is not None:
                rows.append(_evaluation(header, cells))
                continue
        except (ValueError, csv.Error) as error:
            wrong.append(f"{path} line {reader.line_num} {error}")
            continue
        header = cells
        known, got = ([name for name in names if not _OWN.fullmatch(name)] for names in (columns, header))
        if got != [name for name in known if name in got or name not in _LATER]:
            told = " ".join(",".join(header).split())[:300]
            raise ValueError(f"{path} must have the columns {','.join(columns)}, got {told}")
    if torn:
        wrong.append(
            f"{path} must be UTF-8, got other bytes in its last line" if "\ufffd" in torn else f"{path} {TORN}"
        )
    return rows, wrong


def _evaluation(header: Sequence[str], cells: Sequence[str]) -> Evaluation:
    if len(cells) != len(header):
        raise ValueError(f"must hold {len(header)} cells, got {len(cells)}")
    row = dict(zip(header, cells, strict=True))
    for name, cell in row.items():
        _check(name, cell)
    relax_epoch = int(row["relax_epoch"]) if row["relax_epoch"] else None
    return Evaluation(
        Arm.parse(row["arm"]), int(row["seed"]), relax_epoch, int(row["epoch"]), row.get("layer", ""), row
    )


def _check(name: str, cell: str) -> None:
    """Raise ``ValueError`` unless ``cell`` is what may stand in the column ``name``."""
    if name in ("arm", "layer") or (not cell and name not in ("seed", "epoch")):
        return
    count = name in ("seed", "relax_epoch", "epoch")
    try:
        right = 0 <= int(cell) < _MOST if count else math.isfinite(float(cell)) or cell in ("nan", "inf", "-inf")
    except ValueError:
        right = False
    if not right:
        what = f"an integer in [0, {_MOST})" if count else "a number"
        raise ValueError(f"must hold {what} in the column {name}, got {cell[:_MOST_TOLD]!r}")


class MetricsFile:
    """One CSV file with the columns ``columns``; floats are written so that reading them gives the same bits.

    Args:
        path: the file; it is made if it is not there.
        columns: of the file; one that it lacks is empty in its rows.
        epochs: the epoch of the latest checkpoint of each stage that has one. Rows past it, rows of other stages
            and a torn last line are what a kill left, and are removed.

    Raises:
        ValueError: the file has other columns, or is a symbolic link.
    """

    def __init__(self, path: Path, columns: Sequence[str], epochs: Mapping[str, int]) -> None:
        self._path, self._columns = path, tuple(columns)
        rows, _ = read_evaluations(path, columns)
        kept = covered(rows, epochs)
        self._there = {row.key for row in kept}
        os.close(open_to_append(path))  # which makes it, or refuses a link
        text = self._text(kept)
        if path.read_bytes() != text.encode():
            write_text_atomically(path, text)
        self._file: TextIO = os.fdopen(open_to_append(path), "a", encoding="utf-8", newline="")

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; missing columns and None become empty."""
        self._file.write(_as_csv([[row.get(name) for name in self._columns] for row in rows]))
        self._file.flush()

    def absorb(self, part: Path) -> None:
        """Add the rows of a stage's own file, those that are not there yet, force them to the disk and remove it."""
        rows = [row for row in _read(part, self._columns)[0] if row.key not in self._there]
        self._there |= {row.key for row in rows}
        self._file.write(_as_csv([[row.cells.get(name, "") for name in self._columns] for row in rows]))
        self._file.flush()
        self.sync()
        part.unlink(missing_ok=True)

    def sync(self) -> None:
        """Force the rows to the disk; a checkpoint that covers them is written only after this."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def sort(self, stages: Sequence[str]) -> None:
        """Bring the rows into the order in which one process after the other would have written them."""
        order = {stage: place for place, stage in enumerate(stages)}
        rows, _ = _read(self._path, self._columns)
        ordered = sorted(rows, key=lambda row: (order.get(row.stage, -1), row.epoch))
        if ordered != rows:
            write_text_atomically(self._path, self._text(ordered))

    def _text(self, rows: Iterable[Evaluation]) -> str:
        return _as_csv([self._columns, *([row.cells.get(name, "") for name in self._columns] for row in rows)])


def covered(rows: Iterable[Evaluation], latest: Mapping[str, int]) -> list[Evaluation]:
    """Those up to the latest checkpoint of their stage, and those of nets that were never embedded.

    Such a net has one row, at its relax time, since its CNN had diverged by then.
    """
    return [
        row
        for row in rows
        if row.epoch <= latest.get(row.stage, -1)
        or (row.epoch == row.relax_epoch and row.cells.get("test_accuracy") == "nan")
    ]


def diverged(rows: Iterable[Evaluation]) -> dict[str, int]:
    """The stages whose last training loss is no finite number, and the epoch from which on it is none."""
    since: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.epoch):
        if math.isfinite(row.number("train_loss")):
            since.pop(row.stage, None)
        else:
            since.setdefault(row.stage, row.epoch)
    return since


def _as_csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
