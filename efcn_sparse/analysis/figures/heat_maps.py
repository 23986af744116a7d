"""The incoming weights of one unit as an image over the input pixels, at embedding, midway and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.figures.canvas import WIDTH, Drawing, new_figure
from efcn_sparse.analysis.palette import look_of
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.weights import LayerWeights, Moment, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

MOMENTS = ("embedding", "midway", "end")
RANGE = 1e-4  # the colours span four decades below the largest weight
_ZERO = "#d4d4d4"


def draw_heat_maps(run: Run, weights: Weights) -> list[Drawing]:
    """One figure for each eFCN arm: rows are layers, columns relax times and moments."""
    arms = dict.fromkeys(moment.arm for moment in weights.moments)
    return [_draw_arm(run, weights, arm) for arm in sorted(arms, key=run.config.embedded_arms.index)]


def _draw_arm(run: Run, weights: Weights, arm: str) -> Drawing:
    moments = [moment for moment in weights.moments if moment.arm == arm]
    layers = list(moments[0].layers)
    columns = len(weights.times) * len(MOMENTS)
    cell = min((WIDTH - 1.6) / columns, 2.3)
    figure = new_figure(height=0.75 + len(layers) * (cell + 0.08), width=cell * columns + 1.6)
    parts = figure.subfigures(1, len(weights.times), wspace=0.02, squeeze=False)[0]
    norms = {layer: _norm([moment.layers[layer].image for moment in moments]) for layer in layers}
    images = {}
    all_axes = {}
    for time, part in zip(weights.times, parts, strict=True):
        part.suptitle(f"t_w = {time}", fontsize=10, fontweight="bold")
        grid = part.subplots(len(layers), len(MOMENTS), squeeze=False)
        for column, when in enumerate(MOMENTS):
            moment = weights.find(arm, time, when)
            for row, layer in enumerate(layers):
                axes = grid[row][column]
                if row == 0:
                    axes.set_title(when if moment is None else f"{when}\nepoch {moment.epoch}", fontsize=8.5)
                if column == 0 and time == weights.times[0]:
                    axes.set_ylabel(f"{layer}\n{_unit(moments[0], layer)}", fontsize=8)
                image = _image(axes, moment, layer, norms[layer])
                images[layer] = image or images.get(layer)
        all_axes[time] = grid
    last = all_axes[weights.times[-1]]
    for row, layer in enumerate(layers):
        bar = parts[-1].colorbar(images[layer], ax=list(last[row]), fraction=0.06, pad=0.03, aspect=12, extend="min")
        bar.ax.tick_params(labelsize=7)
        bar.ax.minorticks_off()
        bar.set_label("|w|", fontsize=8)
    look = look_of(arm, run.arms)
    caption = (
        f"{look.name}, seed {weights.seed}: incoming weights of one unit (channel, then pixel of the output; the pixel in "
        "the middle) at every input pixel, as the norm over input channels, on a logarithmic scale that each layer's row "
        "shares. The outline is the unit's receptive field; grey pixels have weights of exactly zero."
    )
    return Drawing(f"weights-{arm}", figure, f"Heat maps of one unit's incoming weights in {look.name}.", caption)


def _norm(images: list[np.ndarray]) -> LogNorm:
    from matplotlib.colors import LogNorm

    positive = np.concatenate([image[image > 0] for image in images] or [np.ones(1)])
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(positive.min()) if positive.size else high, high * RANGE)
    return LogNorm(min(low, high * 0.1), high)


def _unit(moment: Moment, layer: str) -> str:
    channel, *pixel = moment.layers[layer].unit
    return f"channel {channel}, pixel {', '.join(str(one) for one in pixel)}"


def _image(axes: Axes, moment: Moment | None, layer: str, norm: LogNorm):  # noqa: ANN202
    from matplotlib import colormaps

    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if moment is None:
        axes.text(0.5, 0.5, "no\ncheckpoint", ha="center", va="center", fontsize=8, color="#777777")
        axes.set_box_aspect(1)
        return None
    weights = moment.layers[layer]
    colours = colormaps["magma"].with_extremes(bad=_ZERO)
    image = axes.imshow(np.ma.masked_equal(weights.image, 0), norm=norm, cmap=colours, interpolation="nearest")
    _outline(axes, weights)
    return image


def _outline(axes: Axes, weights: LayerWeights) -> None:
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = weights.box
    corner, width, height = (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1
    for colour, line in (("#0b0b0b", 2.6), ("#4df3ff", 1.2)):  # a dark casing keeps it visible on light pixels
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=colour, lw=line, clip_on=False))
