"""What the evaluations amount to: means and spreads over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efcn_sparse.analysis.run_data import Floats, Ints, Run, Trace
from efcn_sparse.training.arms import CNN, Arm

# two-sided 95% quantiles of Student's t for 2, 3, ... seeds
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; ``std`` is nan for one seed, both for none.

    Example:
        >>> spread([0.25, 0.75])
        Spread(mean=0.5, std=0.3535533905932738, n=2)
    """

    mean: float
    std: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the 95% confidence interval of the mean, by Student's t; nan for one seed.

        Example:
            >>> round(spread([0.25, 0.75]).half_width, 3)
            3.178
        """
        if self.n < 2:
            return math.nan
        return (_T[self.n - 2] if self.n - 2 < len(_T) else 2.23) * self.std / math.sqrt(self.n)

    def text(self, digits: int = 3) -> str:
        """``mean ± std``, without the spread where there is one seed.

        Example:
            >>> spread([0.25, 0.75]).text(), spread([0.5]).text(2), spread([]).text()
            ('0.500 ± 0.354', '0.50', '–')
        """
        if self.n == 0:
            return "–"
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if self.n > 1 else "")


def spread(values: Sequence[float] | Floats) -> Spread:
    """The :class:`Spread` of ``values``, leaving out nan."""
    kept = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    if kept.size == 0:
        return Spread(math.nan, math.nan, 0)
    return Spread(float(kept.mean()), float(kept.std(ddof=1)) if kept.size > 1 else math.nan, int(kept.size))


@dataclass(frozen=True)
class Final:
    """The last evaluation of one arm at one relax time, over its seeds.

    Attributes:
        epochs: the last epochs of the seeds, lowest and highest.
        stored: numbers in the support.
        leak, captured: means over the epochs (columns of metrics.csv): a single batch tells little.
        complete: whether every seed of the plan has reached the end, or has diverged.
        diverged: how many seeds have diverged; the means are over the others.
        control: test accuracy of the CNN of the same seeds at the same epochs.
        against_cnn: test accuracy minus ``control``, seed by seed.
    """

    arm: Arm
    relax_epoch: int | None
    epochs: tuple[int, int]
    complete: bool
    diverged: int
    test_accuracy: Spread
    train_accuracy: Spread
    test_loss: Spread
    delta: Spread
    stored: Spread
    leak: Spread
    captured: Spread
    control: Spread
    against_cnn: Spread


def finals(run: Run) -> list[Final]:
    """One :class:`Final` for each arm and relax time, in the order of the arms, then of the relax times."""
    times = {arm: [*([None] if run.of(arm) else []), *run.relax_epochs([arm])] for arm in run.arms}
    return [_final(run, arm, time) for arm in run.arms for time in times[arm]]


def _final(run: Run, arm: Arm, relax_epoch: int | None) -> Final:
    traces = run.of(arm, relax_epoch)
    controls = [_control(run, trace) for trace in traces]
    differences = [trace.final("test_accuracy") - control for trace, control in zip(traces, controls, strict=True)]
    last = [int(trace.epochs[-1]) for trace in traces]
    planned = {stage.seed: stage.last for stage in run.plan if (stage.arm, stage.relax_epoch) == (arm, relax_epoch)}
    complete = planned == {t.seed: planned.get(t.seed, -1) if t.diverged else int(t.epochs[-1]) for t in traces}
    diverged = sum(trace.diverged for trace in traces)
    over_seeds = {
        name: spread([trace.final(name) for trace in traces])
        for name in ("test_accuracy", "train_accuracy", "test_loss", "delta", "stored")
    }
    over_seeds |= {name: spread([trace.mean(name) for trace in traces]) for name in ("leak", "captured")}
    return Final(
        arm, relax_epoch, (min(last), max(last)), complete, diverged,
        control=spread(controls), against_cnn=spread(differences), **over_seeds,
    )  # fmt: skip


def _control(run: Run, trace: Trace) -> float:
    """Test accuracy of the same seed's CNN at the last epoch of ``trace``; nan if it was not evaluated there."""
    if trace.arm == CNN:
        return math.nan
    for cnn in run.of(CNN):
        at = np.flatnonzero(cnn.epochs == trace.epochs[-1])
        if cnn.seed == trace.seed and at.size:
            return float(cnn.columns["test_accuracy"][at[0]])
    return math.nan


def mean_curve(traces: Sequence[Trace], column: str) -> tuple[Ints, Floats, Floats]:
    """Mean and half-width (standard deviation) over the seeds that have reached each epoch.

    Returns:
        epochs int64 ``[n]``, mean and standard deviation float64 ``[n]``; the deviation is 0 where one seed counts.
    """
    epochs = np.unique(np.concatenate([trace.epochs for trace in traces]))
    table = np.full((len(traces), epochs.size), np.nan)
    for row, trace in zip(table, traces, strict=True):
        row[np.searchsorted(epochs, trace.epochs)] = trace.columns[column]
    known = np.isfinite(table).any(0)
    epochs, table = epochs[known], table[:, known]
    count = np.isfinite(table).sum(0)
    mean = np.nansum(table, 0) / np.maximum(count, 1)
    squares = np.nansum((table - mean) ** 2, 0)
    return epochs, mean, np.sqrt(squares / np.maximum(count - 1, 1))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; nan below three points or without variation.

    Example:
        >>> rank_correlation([0, 1, 5, 9], [0.1, 0.4, 0.5, 0.7])
        1.0
    """
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    return float(round((a @ b) / math.sqrt((a @ a) * (b @ b)), 12))


def _ranks(values: Sequence[float]) -> Floats:
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
