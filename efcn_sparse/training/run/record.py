"""What one stage writes to while it trains: its rows, its checkpoints and its log."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import nn
from torch.optim import Optimizer

from efcn_sparse.training.run.checkpoint import checkpoint_path, epochs_on_disk, save_checkpoint
from efcn_sparse.training.run.metrics import LAYERS, MetricsFile, Row, part_path
from efcn_sparse.training.run.plan import Stage
from efcn_sparse.training.run.run_directory import locked


class Record:
    """What one stage writes to while it trains; nobody else may write there meanwhile.

    Args:
        run_dir: of the run; it has the folders ``checkpoints`` and ``stages``.
        columns: of metrics.csv.
        notify: called after each row of metrics.csv.

    Attributes:
        kept: the epochs of the checkpoints that the stage had when this was made.
        diverged: whether the loss is no finite number any more.

    Raises:
        BlockingIOError: another process trains the stage.
    """

    def __init__(self, run_dir: Path, stage: Stage, columns: Sequence[str], notify: Callable[[], None]) -> None:
        self.stage, self._run_dir, self._notify = stage, run_dir, notify
        self.diverged = False
        with contextlib.ExitStack() as opened:
            self._log = opened.enter_context(stage_log(run_dir, stage.name))
            self.kept = epochs_on_disk(run_dir).get(stage.name, [])
            latest = {stage.name: self.kept[-1]} if self.kept else {}
            files = (("metrics.csv", columns), ("layers.csv", LAYERS))
            self._metrics, self._layers = (
                opened.enter_context(contextlib.closing(MetricsFile(part_path(run_dir, stage.name, name), of, latest)))
                for name, of in files
            )
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the files, and let others train the stage."""
        self._opened.close()

    def append(self, row: Row, layers: Sequence[Row]) -> None:
        """Add the row of an epoch to metrics.csv, and those of its layers to layers.csv."""
        if layers:
            self._layers.append(layers)
        self._metrics.append([row])
        self.diverged = not math.isfinite(float(row["train_loss"]))  # type: ignore[arg-type]
        self.tell(f"epoch {row['epoch']}, {told(row)}")
        self._notify()

    def tell(self, line: str) -> None:
        """Add a line to the log."""
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        self._log.flush()

    def sync(self) -> None:
        """Force the rows to the disk."""
        self._metrics.sync()
        self._layers.sync()

    def save(self, model: nn.Module, optimizer: Optimizer, epoch: int) -> None:
        """Write a checkpoint, and remove those of the stage that served only for going on.

        The order on the disk is: rows, then the checkpoint that covers them, then the removal of the one before. So a
        checkpoint never lacks its rows, and rows past it are what a kill left.
        """
        self.sync()
        save_checkpoint(checkpoint_path(self._run_dir, self.stage.name, epoch), model, optimizer)
        self.forget()

    def forget(self) -> None:
        """Remove the checkpoints of the stage that are not to be kept, except the latest."""
        for epoch in epochs_on_disk(self._run_dir)[self.stage.name][:-1]:
            if epoch not in self.stage.kept:
                checkpoint_path(self._run_dir, self.stage.name, epoch).unlink()


def stage_log(run_dir: Path, stage: str) -> contextlib.AbstractContextManager[TextIO]:
    """The log of a stage, which only one process holds at a time.

    Raises:
        BlockingIOError: another process holds it.
    """
    return locked(part_path(run_dir, stage, "log"), f"{stage} in run_dir {run_dir} is being trained by another process")


def told(row: Mapping[str, Any]) -> str:
    """What a row of metrics.csv says, in words."""
    if math.isnan(float(row["test_accuracy"])):
        return "not embedded, since its CNN has diverged"
    if not math.isfinite(float(row["train_loss"])):
        return f"diverged at learning rate {float(row['lr']):g}"
    accuracy = f"test accuracy {100 * float(row['test_accuracy']):.1f}%"
    return accuracy if row.get("delta") in (None, "") else f"{accuracy}, δ {float(row['delta']):.3f}"
