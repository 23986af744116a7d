"""How much of the gradient falls outside of each arm's support, epoch by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import Drawing, colors_of_times, legend_of_times, new_figure
from efcn_sparse.analysis.palette import look_of
from efcn_sparse.analysis.run_data import Run, Trace
from efcn_sparse.analysis.statistics import mean_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def arms_that_leak(run: Run) -> list[str]:
    """The embedded arms of which a part of the gradient was seen to fall outside the support."""
    return [arm for arm in run.relaxed_arms if any(t.arm == arm and (t.columns["leak"] > 0).any() for t in run.traces)]


def draw_leak(run: Run) -> list[Drawing]:
    """One figure, rows are arms and columns layers; none where no leak was read."""
    arms = arms_that_leak(run)
    if not arms:
        return []
    layers = list(dict.fromkeys(name for arm in arms for name in run.layer_names(arm)))
    colors = colors_of_times(run, arms)
    figure = new_figure(height=1.0 + 1.9 * len(arms))
    grid = figure.subplots(len(arms), len(layers) + 1, sharex=True, sharey=True, squeeze=False)
    for row, arm in zip(grid, arms, strict=True):
        for axes, layer in zip(row, [*layers, None], strict=True):
            for time in run.relax_epochs([arm]):
                traces = run.of(arm, time) if layer is None else run.layers_of(arm, layer, time)
                _curve(axes, traces, time, colors[time])
        row[0].set_ylabel("share outside")
        look = look_of(arm, run.arms)
        row[0].annotate(
            look.name, (0.0, 1.0), (2, 4), xycoords="axes fraction", textcoords="offset points",
            color=look.color, fontweight="bold",
        )  # fmt: skip
    grid[0, 0].set_ylim(-0.02, 1)
    grid[0, 0].xaxis.get_major_locator().set_params(integer=True)
    for axes, name in zip(grid[0], [*layers, "all embedded layers"], strict=True):
        axes.set_title(name, fontweight="bold", pad=18)
    figure.supxlabel("epochs since the embedding", fontsize=9)
    legend_of_times(figure, colors)
    caption = (
        "The part of the squared gradient of the dense matrices that falls outside the stored support, and that "
        "training therefore ignores; in the last whole batch of each epoch. The full eFCN leaves nothing out and has "
        "no row. Means over seeds, shades are one standard deviation."
    )
    alt = "Share of the squared gradient outside the support over the epochs, for every arm and layer."
    return [Drawing("gradient-outside", figure, alt, caption)]


def _curve(axes: Axes, traces: Sequence[Trace], time: int, color: Any) -> None:
    since = [Trace(t.arm, t.seed, t.relax_epoch, t.layer, t.epochs - time, t.columns) for t in traces]
    if not since:
        return
    epochs, mean, std = mean_curve(since, "leak")
    if not epochs.size:
        return
    if std.any():
        low, high = np.clip([mean - std, mean + std], 0, 1)
        axes.fill_between(epochs, low, high, color=color, alpha=0.12, lw=0)
    axes.plot(epochs, mean, color=color, lw=1.3, marker="o" if epochs.size == 1 else "", ms=4)
