"""What a run writes to while it trains: its metrics, its checkpoints, and the screen."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from efcn_sparse.training.checkpoint import checkpoint_path, epochs_on_disk, save_checkpoint
from efcn_sparse.training.metrics import MetricsFile
from efcn_sparse.training.plan import Stage


@dataclass
class Record:
    """What a run writes to while it trains.

    Attributes:
        diverged: the stages whose loss is no finite number any more, and since which epoch.
    """

    metrics: MetricsFile
    layers: MetricsFile
    progress: Progress
    checkpoints: Path
    diverged: dict[str, int]

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

    def show(self, stage: Stage, row: Mapping[str, Any], *, advance: int, last: bool) -> None:
        """``row`` of metrics.csv, ``advance`` epochs after the one before; ``last`` of its stage or not."""
        if self._bar is not None:
            self._bar.set_postfix_str(_measured(row), refresh=False)
            self._bar.set_description_str(f"{stage.name} epoch {row['epoch']}/{stage.last}", refresh=False)
            self._bar.update(advance)
        elif last and not self._quiet:
            print(f"{stage.name}: epoch {row['epoch']}, {_measured(row)}", flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _measured(row: Mapping[str, Any]) -> str:
    if math.isnan(row["test_accuracy"]):
        return "not embedded, since its CNN has diverged"
    if not math.isfinite(row["train_loss"]):
        return f"diverged at learning rate {row['lr']:g}"
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
