"""The norm of off-local weights against their distance from the receptive field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.figures.canvas import T_W, Drawing, new_figure, plain_log_labels
from efcn_sparse.analysis.palette import Look, look_of
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.weights import Moment, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {"embedding": ":", "midway": "--", "end": "-"}
_COMMON = "Distance is the larger of the horizontal and the vertical distance to the receptive field, in input pixels. "


def draw_distance(run: Run, weights: Weights) -> list[Drawing]:
    """Two figures, norm and root mean square: rows are relax times, columns layers; none without checkpoints."""
    if not weights.moments:
        return []
    zero = all(not moment.layers[layer].profile.squares.any() for moment in weights.moments for layer in moment.layers
               if moment.when == "embedding")  # fmt: skip
    note = "At the embedding all of them are exactly zero and have no curve." if zero else ""
    norm = f"The norm of all off-local weights at each distance, seed {weights.seed}. {_COMMON}{note}"
    rms = (
        f"The root mean square of the off-local weights at each distance, seed {weights.seed}. The diamonds on "
        "the left are the weights inside the receptive field at the end."
    )
    return [_draw(run, weights, "norm", norm), _draw(run, weights, "rms", rms)]


def _draw(run: Run, weights: Weights, quantity: str, caption: str) -> Drawing:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    layers = list(weights.moments[0].layers)
    arms = sorted({moment.arm for moment in weights.moments}, key=run.config.embedded_arms.index)
    figure = new_figure(height=0.8 + 2.0 * len(weights.times))
    grid = figure.subplots(len(weights.times), len(layers), sharex="col", sharey="col", squeeze=False)
    for row, time in zip(grid, weights.times, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            for arm in reversed(arms):  # the shorter curves of small supports come on top
                for when in _STYLES:
                    moment = weights.find(arm, time, when)
                    if moment is not None:
                        _curve(axes, moment, layer, quantity, look_of(arm, run.arms))
            axes.set_yscale("log")
            axes.set_xlim(left=-0.3 if quantity == "rms" else 0.7)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        row[0].set_ylabel(f"{T_W} = {time}\n" + ("norm" if quantity == "norm" else "rms weight"))
    for axes in grid.flat:  # after all curves are there: labels depend on the limits
        plain_log_labels(axes)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(layer, fontweight="bold")
    figure.supxlabel("distance from the receptive field (input pixels)", fontsize=9)
    looks = [look_of(arm, run.arms) for arm in arms]
    handles = [Line2D([], [], color=look.color, marker=look.marker, ms=4, label=look.name) for look in looks]
    handles += [
        Line2D([], [], color="#555555", ls=_STYLES[when], marker="o", ms=4, mfc=fill, label=when)
        for when, fill in (("midway", "white"), ("end", "#555555"))
    ]
    if quantity == "rms":
        field = Line2D([], [], color="none", marker="D", mfc="white", mec="#555555", label="receptive field, end")
        handles.append(field)
    figure.legend(handles=handles, loc="outside right upper")
    alt = f"{'Norm' if quantity == 'norm' else 'Root mean square'} of off-local weights by distance, for every layer."
    return Drawing(f"distance-{quantity}", figure, alt, caption)


def _curve(axes: Axes, moment: Moment, layer: str, quantity: str, look: Look) -> None:
    profile = moment.layers[layer].profile
    line = profile.norm if quantity == "norm" else profile.rms
    line = np.where(line > 0, line, np.nan)
    at = np.flatnonzero(np.isfinite(line))
    axes.plot(
        at, line[at], ls=_STYLES[moment.when], color=look.color, lw=1.4, marker=look.marker, ms=3.5,
        mfc=look.color if moment.when == "end" else "white", mew=0.8,
    )  # fmt: skip
    if quantity == "rms" and moment.when == "end":
        axes.plot([0], [profile.local_rms], "D", mfc="white", mec=look.color, ms=5.5)
