"""How local the weights of embedded nets stay as they leave the CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import Drawing, colors_of_times, legend_of_times, new_figure
from efcn_sparse.analysis.run_data import Run, Trace
from efcn_sparse.training.arms import ELCN, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "non_locality": "mean distance from the\nwindow's center, pixels",
    "gyration": "radius of gyration,\npixels",
    "participation": "inverse participation\nratio (1/n for n equal)",
}


def draw_locality(run: Run) -> list[Drawing]:
    """One figure for each embedded arm that can leave the windows, rows are measures and columns layers."""
    known = {trace.arm for trace in run.layer_traces if np.isfinite(trace.columns["gyration"]).any()}
    return [_draw_arm(run, arm) for arm in run.embedded_arms if arm in known and arm != ELCN]


def _draw_arm(run: Run, arm: Arm) -> Drawing:
    layers, colors = run.layer_names(arm), colors_of_times(run, [arm])
    figure = new_figure(height=0.9 + 1.75 * len(LABELS))
    grid = figure.subplots(len(LABELS), len(layers), sharex="col", squeeze=False)
    for row, measure in zip(grid, LABELS, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            for time, color in colors.items():
                for trace in run.layers_of(arm, layer, time):
                    _curve(axes, trace, measure, color)
        row[0].set_ylabel(LABELS[measure])
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(layer, fontweight="bold")
    figure.supxlabel("δ, the off-local share of the layer's ‖W‖", fontsize=9)
    legend_of_times(figure, colors)
    caption = (
        f"{run.looks[arm].label}: when weights leave the windows, how far from them do they go? Each curve is one "
        "seed, epoch by epoch; it starts with a dot at the embedding, where δ is 0. Units count alike, however large "
        "their weights."
    )
    return Drawing(f"locality-{arm}", figure, f"Locality of {run.looks[arm].label} against its deviation δ.", caption)


def _curve(axes: Axes, trace: Trace, measure: str, color: Any) -> None:
    delta, local = trace.columns["delta"], trace.columns[measure]
    axes.plot(delta, local, color=color, lw=1.0)
    axes.plot(delta[:1], local[:1], "o", color=color, ms=4, mec="white", mew=0.6, zorder=4)
