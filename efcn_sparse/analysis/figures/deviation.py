"""The deviation from the CNN subspace and its three parts over time."""

from __future__ import annotations

import dataclasses

import numpy as np

from efcn_sparse.analysis.figures.canvas import (
    T_W,
    Drawing,
    colors_of_times,
    curve_since,
    legend_of_times,
    new_figure,
    set_epoch_ticks,
)
from efcn_sparse.analysis.run_data import Run, Trace
from efcn_sparse.analysis.statistics import spread
from efcn_sparse.training.arms import ELCN, Arm

LABELS = {
    "off_local": "off-local share δ\n‖off-local‖ / ‖W‖",
    "untied": "untied share\n‖untied‖ / ‖W‖",
    "tied": "tied share\n‖tied‖ / ‖W‖",
    "norm": "norm ‖W‖",
}


def measured(trace: Trace, quantity: str) -> np.ndarray:
    """``norm`` (of all weights), or the share of ``tied``, ``untied`` or ``off_local`` in it, at each epoch.

    Law: the squares of the three shares sum to one.
    """
    parts = {name: trace.columns[name] for name in ("tied", "untied", "off_local")}
    norm = np.sqrt(sum(part**2 for part in parts.values()))
    return norm if quantity == "norm" else parts[quantity] / np.where(norm > 0, norm, np.nan)


def draw_deviation(run: Run) -> list[Drawing]:
    """One figure for each embedded arm, rows are quantities and columns layers, and a summary of them all."""
    arms = [arm for arm in run.embedded_arms if run.layer_names(arm)]
    summary = [_draw_summary(run)] if run.embedded_arms else []
    return summary + [_draw_arm(run, arm) for arm in arms]


def _draw_arm(run: Run, arm: Arm) -> Drawing:
    layers, colors = run.layer_names(arm), colors_of_times(run, [arm])
    quantities = [name for name in LABELS if name != "off_local" or arm != ELCN]
    figure = new_figure(height=0.9 + 1.75 * len(quantities))
    columns = len(layers) + 1
    grid = figure.subplots(len(quantities), columns, sharex=True, squeeze=False)
    for row, quantity in zip(grid, quantities, strict=True):
        for axes in row[1:] if quantity != "norm" else ():
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)
        for axes, layer in zip(row, [*layers, None], strict=True):
            for time, color in colors.items():
                traces = run.of(arm, time) if layer is None else run.layers_of(arm, layer, time)
                shares = [dataclasses.replace(trace, columns={quantity: measured(trace, quantity)}) for trace in traces]
                curve_since(axes, shares, quantity, time, color)
        if quantity in ("off_local", "untied"):
            row[0].set_ylim(bottom=0)
        row[0].set_ylabel(LABELS[quantity])
    for axes, name in zip(grid[0], [*layers, "all embedded layers"], strict=True):
        axes.set_title(name, fontweight="bold")
    figure.supxlabel("epochs since the embedding", fontsize=9)
    legend_of_times(figure, colors)
    look = run.looks[arm]
    none = " It has no off-local weights, so δ is 0." if arm == ELCN else ""
    caption = (
        f"{look.label}: what share of the weights' norm has left the CNN.{none} Tied weights are equal at every "
        "position, untied is the rest of those inside the receptive field, off-local are those outside; the squares of "
        "the three shares sum to one. Means over seeds, shades are one standard deviation."
    )
    return Drawing(f"deviation-{arm}", figure, f"Deviation of {look.label} from the CNN subspace over time.", caption)


def _draw_summary(run: Run) -> Drawing:
    figure = new_figure(height=3.4)
    panels = dict(zip(("off_local", "untied", "norm"), figure.subplots(1, 3), strict=True))
    for arm in run.embedded_arms:
        look, times = run.looks[arm], run.relax_epochs([arm])
        for quantity, axes in panels.items():
            if quantity == "off_local" and arm == ELCN:
                continue
            last = [spread([measured(trace, quantity)[-1] for trace in run.of(arm, time)]) for time in times]
            axes.errorbar(
                times, [one.mean for one in last], np.nan_to_num([one.std for one in last]), color=look.color,
                marker=look.marker, ms=5, mec="white", mew=0.6, capsize=2, elinewidth=0.9, label=look.label,
            )  # fmt: skip
    panels["off_local"].set_ylim(bottom=0)
    panels["untied"].set_ylim(bottom=0)
    for quantity, axes in panels.items():
        set_epoch_ticks(axes, run.relax_epochs(run.embedded_arms), spacing=0.085)
        axes.set_ylabel(LABELS[quantity])
    panels["norm"].set_ylabel("norm ‖W‖ of all embedded layers")
    figure.supxlabel(f"relax time {T_W} (linear up to 1, then logarithmic)", fontsize=9)
    handles = panels["untied"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper")
    caption = (
        "Where the embedded nets end: shares at the last epoch over all embedded layers, against the relax time. "
        "Means over seeds, bars are one standard deviation. The eLCN has no off-local weights."
    )
    return Drawing("deviation-summary", figure, "Final deviation from the CNN subspace against relax time.", caption)
