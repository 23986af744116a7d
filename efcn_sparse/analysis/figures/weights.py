"""Weights in the checkpoints: images of one unit's, and norms by distance from the receptive field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.figures.canvas import T_W, WIDTH, Drawing, new_figure, plain_log_labels
from efcn_sparse.analysis.layer_weights import DistanceProfile
from efcn_sparse.analysis.looks import Look
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.weights import LayerWeights, Moment, Weights
from efcn_sparse.training.arms import Arm

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


def _draw_arm(run: Run, weights: Weights, arm: Arm) -> Drawing:
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
    look = run.looks[arm]
    caption = (
        f"{look.label}, seed {weights.seed}: incoming weights of the unit named on the left (channel and output "
        "pixel), at every input pixel, as the norm over input channels, on a logarithmic scale that the layer's row "
        "shares. The outline is the unit's receptive field; gray pixels have weights of exactly zero."
    )
    return Drawing(f"weights-{arm}", figure, f"Heat maps of one unit's incoming weights in {look.label}.", caption)


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

    every = list(weights.moments[0].layers)
    layers = [layer for layer in every if quantity == "rms" or _at(weights, layer, quantity).size] or every
    if len(layers) < len(every):
        caption += " Layers without off-local weights are left out."
    arms = sorted({moment.arm for moment in weights.moments}, key=run.config.embedded_arms.index)
    figure = new_figure(height=0.8 + 2.0 * len(weights.times))
    grid = figure.subplots(len(weights.times), len(layers), sharex="col", sharey="col", squeeze=False)
    for row, time in zip(grid, weights.times, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            for arm in reversed(arms):  # the shorter curves of small supports come on top
                for when in _STYLES:
                    moment = weights.find(arm, time, when)
                    if moment is not None:
                        _distance_curve(axes, moment, layer, quantity, run.looks[arm])
            axes.set_yscale("log")
        row[0].set_ylabel(f"{T_W} = {time}\n" + ("norm" if quantity == "norm" else "rms weight"))
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_xlim(*_distances(weights, layer, quantity))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    for axes in grid.flat:  # after all curves are there: labels depend on the limits
        plain_log_labels(axes)
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(layer, fontweight="bold")
    figure.supxlabel("distance from the receptive field (input pixels)", fontsize=9)
    looks = [run.looks[arm] for arm in arms]
    handles = [Line2D([], [], color=look.color, marker=look.marker, ms=4, label=look.label) for look in looks]
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


def _distances(weights: Weights, layer: str, quantity: str) -> tuple[float, float]:
    """Limits around the distances of what is drawn, and around two of them at least, since ticks are whole pixels."""
    at = _at(weights, layer, quantity)
    first = 0 if quantity == "rms" else int(at.min(initial=1))
    return first - 0.3, int(at.max(initial=first + 1)) + 0.3


def _at(weights: Weights, layer: str, quantity: str) -> np.ndarray:
    """The distances at which any moment has something to draw."""
    lines = [_line(moment.layers[layer].profile, quantity) for moment in weights.moments]
    return np.concatenate([np.flatnonzero(np.isfinite(line)) for line in lines])


def _line(profile: DistanceProfile, quantity: str) -> np.ndarray:
    line = profile.norm if quantity == "norm" else profile.rms
    return np.where(line > 0, line, np.nan)


def _distance_curve(axes: Axes, moment: Moment, layer: str, quantity: str, look: Look) -> None:
    profile = moment.layers[layer].profile
    line = _line(profile, quantity)
    at = np.flatnonzero(np.isfinite(line))
    axes.plot(
        at, line[at], ls=_STYLES[moment.when], color=look.color, lw=1.4, marker=look.marker, ms=3.5,
        mfc=look.color if moment.when == "end" else "white", mew=0.8,
    )  # fmt: skip
    if quantity == "rms" and moment.when == "end":
        axes.plot([0], [profile.local_rms], "D", mfc="white", mec=look.color, ms=5.5)
