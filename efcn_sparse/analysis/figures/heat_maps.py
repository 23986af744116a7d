"""The incoming weights of one unit as an image over the input pixels, at embedding, midway and at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.figures.canvas import T_W, WIDTH, Drawing, new_figure
from efcn_sparse.analysis.palette import look_of
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.weights import LayerWeights, Moment, Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

MOMENTS = ("embedding", "midway", "end")
DECADES = 6  # at most, of the color scale
_ZERO = "#d4d4d4"


def draw_heat_maps(run: Run, weights: Weights) -> list[Drawing]:
    """One figure for each eFCN arm: rows are layers, columns relax times and moments."""
    arms = dict.fromkeys(moment.arm for moment in weights.moments)
    return [_draw_arm(run, weights, arm) for arm in sorted(arms, key=run.config.embedded_arms.index)]


def _draw_arm(run: Run, weights: Weights, arm: str) -> Drawing:
    moments = [moment for moment in weights.moments if moment.arm == arm]
    layers = list(moments[0].layers)
    cells = _Cells(len(weights.times), len(layers))
    figure = new_figure(height=cells.height, width=WIDTH)
    figure.set_layout_engine("none")
    norms = {layer: _norm([moment.layers[layer].image for moment in moments]) for layer in layers}
    for group, time in enumerate(weights.times):
        middle = cells.place(group, 1, 0)
        figure.text(
            middle[0] + middle[2] / 2, 1 - 0.06 / cells.height, f"{T_W} = {time}", ha="center", va="top",
            fontsize=11,
        )  # fmt: skip
        for column, when in enumerate(MOMENTS):
            moment = weights.find(arm, time, when)
            for row, layer in enumerate(layers):
                axes = figure.add_axes(cells.place(group, column, row))
                _image(axes, moment, layer, norms[layer])
                if row == 0:
                    axes.set_title(when if moment is None else f"{when}\nepoch {moment.epoch}", fontsize=8.5)
                if (group, column) == (0, 0):
                    axes.set_ylabel(f"{layer}\n{_unit(moments[0], layer)}", fontsize=8)
    for row, layer in enumerate(layers):
        _color_bar(figure, cells.bar(row), norms[layer])
    look = look_of(arm, run.arms)
    caption = (
        f"{look.name}, seed {weights.seed}: incoming weights of the unit named on the left (channel and output pixel), "
        "at every input pixel, as the norm over input channels, on a logarithmic scale that the layer's row shares. "
        "The outline is the unit's receptive field; gray pixels have weights of exactly zero."
    )
    return Drawing(f"weights-{arm}", figure, f"Heat maps of one unit's incoming weights in {look.name}.", caption)


class _Cells:
    """Places of square images in inches: a row for each layer, a group of three columns for each relax time."""

    left, right, top, bottom, gap, group_gap = 0.75, 0.85, 0.64, 0.12, 0.07, 0.22

    def __init__(self, groups: int, rows: int) -> None:
        columns = groups * len(MOMENTS)
        gaps = (groups - 1) * self.group_gap + (columns - groups) * self.gap
        self.size = min((WIDTH - self.left - self.right - gaps) / columns, 2.0)
        self.height = self.top + self.bottom + rows * self.size + (rows - 1) * 0.14
        self.end = self.left + columns * self.size + gaps

    def place(self, group: int, column: int, row: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of an image as shares of the figure."""
        before = group * len(MOMENTS) + column
        x = self.left + before * self.size + (before - group) * self.gap + group * self.group_gap
        return self._share(x, self.top + row * (self.size + 0.14), self.size)

    def bar(self, row: int) -> tuple[float, float, float, float]:
        """The same for a row's color bar."""
        return self._share(self.end + 0.12, self.top + row * (self.size + 0.14), 0.12)

    def _share(self, x: float, down: float, width: float) -> tuple[float, float, float, float]:
        y = self.height - down - self.size
        return x / WIDTH, y / self.height, width / WIDTH, self.size / self.height


def _color_bar(figure: Figure, place: tuple[float, float, float, float], norm: LogNorm) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, "magma"), cax=figure.add_axes(place))
    bar.ax.tick_params(labelsize=7.5)
    bar.ax.minorticks_off()
    bar.set_label("|w|, log scale", fontsize=8)


def _norm(images: list[np.ndarray]) -> LogNorm:
    from matplotlib.colors import LogNorm

    positive = np.concatenate([image[image > 0] for image in images] or [np.ones(1)])
    high = float(positive.max()) if positive.size else 1.0
    low = max(float(np.percentile(positive, 2)) if positive.size else high, high * 10.0**-DECADES)
    return LogNorm(min(low, high * 0.01), high)


def _unit(moment: Moment, layer: str) -> str:
    channel, *pixel = moment.layers[layer].unit
    return f"channel {channel}\npixel {', '.join(str(one) for one in pixel)}"


def _image(axes: Axes, moment: Moment | None, layer: str, norm: LogNorm) -> None:
    from matplotlib import colormaps

    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if moment is None:
        axes.text(0.5, 0.5, "no\ncheckpoint", ha="center", va="center", fontsize=8, color="#777777")
        axes.set_box_aspect(1)
        return
    weights = moment.layers[layer]
    colors = colormaps["magma"].with_extremes(bad=_ZERO)
    axes.imshow(np.ma.masked_equal(weights.image, 0), norm=norm, cmap=colors, interpolation="nearest")
    axes.set_aspect("auto" if 1 in weights.image.shape else "equal")
    _outline(axes, weights)


def _outline(axes: Axes, weights: LayerWeights) -> None:
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = weights.box
    corner, width, height = (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1
    for color, line in (("#0b0b0b", 2.6), ("#4df3ff", 1.2)):  # a dark casing keeps it visible on light pixels
        axes.add_patch(Rectangle(corner, width, height, fill=False, ec=color, lw=line, clip_on=False))
