"""What a run tells while it trains, wherever its stages are trained: events for callbacks, and a display."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efcn_sparse.training.run.metrics import KEYS, part_path
from efcn_sparse.training.run.plan import Stage
from efcn_sparse.training.run.record import told


@dataclass(frozen=True)
class Event:
    """What a callback of :func:`run_relax` is told.

    Attributes:
        kind: ``start`` of a stage (before its first epoch), ``epoch`` that was evaluated, or ``end`` of a stage.
        stage: its name, such as ``efcn-full-seed0-t7``.
        arm, seed, relax_epoch: whose it is; ``relax_epoch`` is None for ``cnn`` and ``fcn``.
        epoch: counted from the start of training; None at the start and at the end.
        values: the numbers of the epoch by their columns in metrics.csv, those that are there.
    """

    kind: str
    stage: str
    arm: str
    seed: int
    relax_epoch: int | None
    epoch: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)


Callback = Callable[[Event], object]

_ALL = "epochs"  # the bar of all stages


class Watch:
    """Reads the stages' files of a run as they grow, and tells callbacks and the display.

    Args:
        columns: of metrics.csv.
        diverged: the stages that have diverged, and at which epoch; those that do now are added.
        callbacks: called in this process, one event after the other.
    """

    def __init__(
        self,
        run_dir: Path,
        columns: Sequence[str],
        diverged: dict[str, int],
        callbacks: Iterable[Callback],
        progress: Progress,
    ) -> None:
        self._run_dir, self._columns, self._callbacks, self._progress = run_dir, columns, tuple(callbacks), progress
        self.diverged = diverged
        self._places = Counter[str]()  # how far each file was read
        self._epochs: dict[str, int] = {}
        self._started: set[str] = set()

    def look(self, stage: Stage) -> None:
        """Tell the rows that a stage has written since it was last looked at."""
        try:
            with part_path(self._run_dir, stage.name, "metrics.csv").open("rb") as file:
                if self._places[stage.name] > file.seek(0, 2):  # begun anew, by another worker
                    self._places[stage.name] = 0
                file.seek(self._places[stage.name])
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._places[stage.name] += len(whole)
        for cells in csv.reader(whole.decode().splitlines()):
            if cells[0] != KEYS[0]:
                self._row(stage, dict(zip(self._columns, cells, strict=True)))

    def end(self, stage: Stage) -> None:
        """A stage is done."""
        self.look(stage)
        self._progress.end(stage)
        self._start(stage)
        self._tell("end", stage)

    def _start(self, stage: Stage) -> None:
        if stage.name not in self._started:
            self._started.add(stage.name)
            self._tell("start", stage)

    def _row(self, stage: Stage, row: dict[str, str]) -> None:
        epoch = int(row["epoch"])
        if epoch <= self._epochs.get(stage.name, -1):
            return
        self._epochs[stage.name] = epoch
        if not math.isfinite(float(row["train_loss"])):
            self.diverged[stage.name] = epoch
        self._progress.show(stage, row)
        self._start(stage)
        values = {name: float(cell) for name, cell in row.items() if cell and name not in KEYS}
        self._tell("epoch", stage, epoch, values)

    def _tell(self, kind: str, stage: Stage, epoch: int | None = None, values: Mapping[str, float] = {}) -> None:
        event = Event(kind, stage.name, stage.arm.name, stage.seed, stage.relax_epoch, epoch, values)
        for callback in self._callbacks:
            callback(event)


class Progress:
    """Epochs of the run, and of each stage that is being trained: bars on a terminal, elsewhere a line per stage.

    Args:
        done: of each stage, how many epochs are behind us.
        quiet: show nothing at all.
    """

    def __init__(self, plan: Sequence[Stage], done: Mapping[str, int], *, quiet: bool = False) -> None:
        self._quiet, self._done, self._last = quiet, dict(done), dict[str, Mapping[str, Any]]()
        self._opened, self._bars, self._tqdm = contextlib.ExitStack(), dict[str, Any](), None
        if not quiet and sys.stderr.isatty():
            with contextlib.suppress(ModuleNotFoundError):
                from tqdm import tqdm

                self._tqdm = tqdm
                self._open(_ALL, sum(stage.last - stage.first for stage in plan), sum(done.values()))

    def show(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """``row`` of metrics.csv has been written."""
        self._last[stage.name] = row
        if self._tqdm is not None:
            if stage.name not in self._bars:
                self._open(stage.name, stage.last - stage.first, self._done[stage.name])
            self._to(stage, int(row["epoch"]) - stage.first, told(row))

    def end(self, stage: Stage) -> None:
        """A stage is done; one that has diverged is so early."""
        row = self._last.pop(stage.name, None)
        if stage.name in self._bars:
            self._to(stage, stage.last - stage.first, "")
            self._bars.pop(stage.name).close()
        elif row is not None and not self._quiet:
            print(f"{stage.name}: epoch {row['epoch']}, {told(row)}", flush=True)

    def close(self) -> None:
        """Leave the bars as they are."""
        self._opened.close()

    def _to(self, stage: Stage, done: int, text: str) -> None:
        more = max(0, done - self._done[stage.name])
        self._done[stage.name] += more
        for name in (_ALL, stage.name):
            self._bars[name].update(more)
        self._bars[stage.name].set_postfix_str(text)

    def _open(self, name: str, total: int, done: int) -> None:
        assert self._tqdm is not None
        bar = self._tqdm(total=total, initial=done, desc=name, unit="epoch", dynamic_ncols=True, leave=name == _ALL)
        self._bars[name] = bar
        self._opened.callback(bar.close)
