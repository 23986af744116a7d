"""What happens epoch by epoch: accuracy, loss, and the gradient outside the support."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import (
    Drawing,
    colors_of_times,
    curve_since,
    legend_of_times,
    new_figure,
    plain_log_labels,
)
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.statistics import mean_curve
from efcn_sparse.training.arms import CNN, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_CAPTION = (
    "One column for each arm, color is the relax time: a curve starts with a dot at the epoch at which the CNN was "
    "embedded. The dashed curve is the CNN at its own learning rate. Means over seeds, shades are one standard "
    "deviation."
)


def draw_curves(run: Run) -> list[Drawing]:
    """Two figures, accuracy and loss, each on the test and on the training data; none without evaluations."""
    if not run.traces:
        return []
    return [
        _draw(run, "accuracy", ("test_accuracy", "train_accuracy")),
        _draw(run, "loss", ("test_loss", "train_loss")),
    ]


def _draw(run: Run, what: str, quantities: tuple[str, str]) -> Drawing:
    from matplotlib.lines import Line2D

    scratch = [arm for arm in run.arms if run.of(arm)]
    relaxed = [arm for arm in run.arms if run.relax_epochs([arm])]
    columns = ([scratch] if scratch else []) + [[arm] for arm in relaxed]
    figure = new_figure(height=5.6)
    grid = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for row, quantity in zip(grid, quantities, strict=True):
        for axes, arms in zip(row, columns, strict=True):
            _panel(axes, run, arms, quantity)
        if what == "loss":
            plain_log_labels(row[0])
        row[0].set_ylabel(quantity.replace("_", " ") + (" (cross-entropy, log scale)" if what == "loss" else ""))
    for axes, arms in zip(grid[0], columns, strict=True):
        name = " and ".join(arm.label for arm in arms)
        axes.set_title(name, color=run.looks[arms[0]].color, fontweight="bold")
    figure.supxlabel("epoch", fontsize=9)
    extra = [
        Line2D([], [], color=run.looks[arm].color, ls="--" if arm == CNN else "-", label=arm.label) for arm in scratch
    ]
    legend_of_times(figure, colors_of_times(run), extra)
    alt = f"Test and training {what} over the epochs for every arm and relax time."
    return Drawing(f"curves-{what}", figure, alt, _CAPTION)


def _panel(axes: Axes, run: Run, arms: list[Arm], quantity: str) -> None:
    if quantity.endswith("loss"):
        axes.set_yscale("log")
    colors = colors_of_times(run)
    if run.of(CNN):
        _curve(axes, run, CNN, None, quantity, run.looks[CNN].color, dashed=True)
    for arm in arms:
        if arm != CNN and run.of(arm):
            _curve(axes, run, arm, None, quantity, run.looks[arm].color)
        for time in run.relax_epochs([arm]):
            _curve(axes, run, arm, time, quantity, colors[time])


def _curve(axes: Axes, run: Run, arm: Arm, time: int | None, quantity: str, color: Any, dashed: bool = False) -> None:
    epochs, mean, std = mean_curve(run.of(arm, time), quantity)
    if not epochs.size:
        return
    if std.any():
        low = np.maximum(mean - std, mean * 0.2) if quantity.endswith("loss") else mean - std
        axes.fill_between(epochs, low, mean + std, color=color, alpha=0.12, lw=0)
    axes.plot(epochs, mean, "--" if dashed else "-", color=color, lw=1.1 if dashed else 1.3)
    if time is not None:
        axes.plot(epochs[:1], mean[:1], "o", color=color, ms=4.5, mec="white", mew=0.6, zorder=4)


def arms_that_leak(run: Run) -> list[Arm]:
    """The embedded arms of which a part of the gradient was seen to fall outside the support."""
    return [arm for arm in run.embedded_arms if any(t.arm == arm and (t.columns["leak"] > 0).any() for t in run.traces)]


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
                curve_since(axes, traces, "leak", time, colors[time], 0, 1)
        row[0].set_ylabel("share outside")
        look = run.looks[arm]
        row[0].annotate(
            look.label, (0.0, 1.0), (2, 4), xycoords="axes fraction", textcoords="offset points",
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
