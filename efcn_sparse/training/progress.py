"""What a run shows: a bar on a terminal, one plain line per training run elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from efcn_sparse.training.plan import Stage


class Progress:
    """Counts epochs over all stages and shows accuracy and δ; without tqdm or a terminal there is no bar.

    Args:
        epochs: how many epochs there are to train in all; ``done`` of them are behind us.
        quiet: show nothing at all.
    """

    def __init__(self, epochs: int, done: int, *, quiet: bool = False) -> None:
        self._quiet, self._bar = quiet, None if quiet else _bar(epochs, done)

    def show(self, stage: Stage, row: Mapping[str, Any], *, advance: int) -> None:
        """The reading ``row`` of ``stage``, ``advance`` epochs after the last one."""
        if self._bar is not None:
            self._bar.set_postfix_str(_reading(row), refresh=False)
            self._bar.set_description_str(f"{stage.name} epoch {row['epoch']}/{stage.last}", refresh=False)
            self._bar.update(advance)

    def finished(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """``row`` is the last reading of ``stage``."""
        if self._bar is None and not self._quiet:
            print(f"{stage.name}: epoch {row['epoch']}, {_reading(row)}", flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _reading(row: Mapping[str, Any]) -> str:
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
