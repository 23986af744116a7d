"""Between the CNN and the nets that left it: losses along paths, barriers, and curvature by part of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import (
    T_W,
    Drawing,
    colors_of_times,
    legend_of_times,
    new_figure,
    plain_log_labels,
    set_epoch_ticks,
)
from efcn_sparse.analysis.landscape import ALL, MOMENTS, Found
from efcn_sparse.analysis.landscape_tables import HEIGHTS, LOSSES, arms_and_times, curvature, heights, of
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.statistics import Spread, spread
from efcn_sparse.training.arms import CNN, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {"linear": "-", "curvilinear": "--", "output": ":"}
# apart from one another and from the arms' colors under the common color-vision deficiencies
_PARTS = {ALL: ("all parameters", "#8a8a8a"), "tied": ("tied", "#4477aa"), "untied": ("untied", "#228833"),
          "off_local": ("off-local", "#aa3377")}  # fmt: skip
_MEASURED = {"top": ("--", "v", "the largest"), "along": ("-", "o", "on its way"), "mean": (":", "s", "the mean")}
_TOLD = {
    "left": "Does a barrier separate a net from the CNN it left?",
    "cnn": "Does a barrier separate a net from what the CNN became meanwhile?",
}
_WAYS = {"left": "from the CNN at the relax time", "cnn": "from the CNN's last epoch"}


def draw_landscape(run: Run, found: Sequence[Found]) -> list[Drawing]:
    """Losses on paths, barriers and curvature against the relax time; none of what was not measured."""
    paths = [one for one in found if one.item.kind in _STYLES]
    curved = [one for one in found if one.item.what in MOMENTS]
    drawings = [_draw_paths(run, paths, what) for what in _WAYS if any(one.item.what == what for one in paths)]
    drawings += [_draw_barriers(run, paths)] if any(one.item.kind == "linear" for one in paths) else []
    return drawings + ([_draw_curvature(run, curved)] if curved else [])


def _draw_paths(run: Run, found: Sequence[Found], what: str) -> Drawing:
    arms = list(dict.fromkeys(arm for arm, _ in arms_and_times(found)))
    columns = [(CNN, "control"), *((arm, what) for arm in arms)] if what == "left" else [(arm, what) for arm in arms]
    columns = [column for column in columns if any((one.item.arm, one.item.what) == column for one in found)]
    colors = colors_of_times(run)
    figure = new_figure(height=5.4)
    grid = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    kinds = [kind for kind in _STYLES if any(one.item.kind == kind for one in found)]
    for row, loss in zip(grid, LOSSES, strict=True):
        row[0].set_yscale("log")
        for axes, (arm, way) in zip(row, columns, strict=True):
            for time, color in colors.items():
                for kind in kinds:
                    _path(axes, of(found, arm, way, time, kind), loss, color, _STYLES[kind])
        plain_log_labels(row[0])
        row[0].set_ylabel(loss.replace("_", " ") + " (log scale)")
    for axes, (arm, _) in zip(grid[0], columns, strict=True):
        axes.set_title(("to " if arm != CNN else "control: to the ") + run.looks[arm].label, color=run.looks[arm].color,
                       fontweight="bold")  # fmt: skip
    figure.supxlabel(f"position on the way {_WAYS[what]} (0) to the last epoch of the net in the title (1)", fontsize=9)
    legend_of_times(figure, colors, _kinds(kinds))
    control = " The control is the way that the CNN itself went on to its last epoch." if what == "left" else ""
    caption = (
        f"{_TOLD[what]} A curve that rises above both its ends says yes.{control} Means over seeds, shades are one "
        f"standard deviation.{_not_finite(found, what)}"
    )
    return Drawing(f"landscape-paths-{what}", figure, f"Losses on paths {_WAYS[what]}, for each relax time.", caption)


def _path(axes: Axes, found: Sequence[Found], loss: str, color: Any, style: str) -> None:
    if not found:
        return
    table = np.array([one.numbers[loss] for one in found])
    table = np.where(np.isfinite(table), table, np.nan)
    known = np.isfinite(table).any(0)
    positions, table = np.array(found[0].numbers["positions"])[known], table[:, known]
    mean = np.nanmean(table, 0)
    std = np.sqrt(np.nansum((table - mean) ** 2, 0) / np.maximum(np.isfinite(table).sum(0) - 1, 1))
    if len(table) > 1:
        axes.fill_between(positions, np.maximum(mean - std, mean * 0.2), mean + std, color=color, alpha=0.12, lw=0)
    axes.plot(positions, mean, style, color=color, lw=1.3)


def _kinds(kinds: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color="#555555", ls=_STYLES[kind], label=kind) for kind in kinds] if len(kinds) > 1 else []


def _not_finite(found: Sequence[Found], *ways: str) -> str:
    paths = [one for one in found if one.item.what in (*ways, "control")]
    lost = sum(not np.isfinite([one.numbers[loss] for loss in LOSSES]).all() for one in paths)
    return f" On {lost} of {len(paths)} paths a loss is not finite, which is left out." if lost else ""


def _draw_barriers(run: Run, found: Sequence[Found]) -> Drawing:
    figure = new_figure(height=3.6)
    panels = figure.subplots(1, 4)
    for axes, (what, loss) in zip(panels, [(what, loss) for what in _WAYS for loss in LOSSES], strict=True):
        lines = [(arm, what) for arm in dict.fromkeys(arm for arm, _ in arms_and_times(found))]
        for arm, way in [(CNN, "control"), *lines] if what == "left" else lines:
            times = sorted({one.item.relax_epoch for one in found if (one.item.arm, one.item.what) == (arm, way)})
            look = run.looks[arm]
            for measured, style, face in zip(HEIGHTS, ("-", ":"), (look.color, "white"), strict=True):
                seeds = [heights(found, arm, way, time, loss, measured) for time in times]
                means = [spread(one).mean for one in seeds]
                axes.plot(times, means, style, color=look.color, marker=look.marker, ms=4.5, mfc=face, mew=0.8, lw=1.2)
                for time, one in zip(times, seeds, strict=True):
                    axes.plot([time] * len(one), one, ".", color=look.color, ms=4, alpha=0.45, mew=0)
        set_epoch_ticks(axes, run.relax_epochs(), spacing=0.1)
        axes.set_title(f"{_WAYS[what]}:\n{loss.replace('_', ' ')}", fontsize=8.5)
    panels[0].set_ylabel("height of the barrier")
    figure.supxlabel(f"relax time {T_W} (linear up to 1, then logarithmic)", fontsize=9)
    arms = [CNN, *dict.fromkeys(arm for arm, _ in arms_and_times(found))]
    figure.legend(handles=[_handle(run, arm) for arm in arms], loc="outside right upper")
    caption = (
        "From which relax time on does no barrier separate a net from the CNN? Solid lines: how far the loss rises on "
        "the straight way above the line between the losses of its ends; dotted lines: above both ends, which is 0 "
        "where it falls all the way. The CNN's is that of its own way from the relax time to its last epoch. Means "
        "over seeds, small dots are single seeds."
    ) + _not_finite([one for one in found if one.item.kind == "linear"], *_WAYS)
    return Drawing("landscape-barrier", figure, "Height of the barrier against the relax time, for every arm.", caption)


def _handle(run: Run, arm: Arm) -> Any:
    from matplotlib.lines import Line2D

    look = run.looks[arm]
    return Line2D([], [], color=look.color, marker=look.marker, ms=5, label=look.label)


def _line(axes: Axes, times: Sequence[int], spreads: Sequence[Spread], color: str, style: str, marker: str) -> None:
    """Means and their intervals on a log axis; a negative mean is drawn by its size, with an open marker."""
    means = np.array([one.mean for one in spreads])
    bars = np.nan_to_num([one.half_width for one in spreads])
    down = np.minimum(bars, 0.8 * np.nan_to_num(np.abs(means)))
    axes.errorbar(times, np.abs(means), [down, bars], color=color, ls=style, lw=1.2, elinewidth=0.8, capsize=2)
    for time, mean in zip(times, means, strict=True):
        face = "white" if mean < 0 else color
        axes.plot(time, abs(mean), marker, ms=4.5, mfc=face, mec=color, mew=0.8, zorder=3)


def _draw_curvature(run: Run, found: Sequence[Found]) -> Drawing:
    from matplotlib.lines import Line2D

    arms = list(dict.fromkeys(arm for arm, _ in arms_and_times(found)))
    parts = [part for part in _PARTS if any(part in one.numbers for one in found)]
    figure = new_figure(height=6.0)
    grid = figure.subplots(len(MOMENTS), len(arms), sharex=True, sharey=True, squeeze=False)
    grid[0, 0].set_yscale("log")
    for row, moment in zip(grid, MOMENTS, strict=True):
        for axes, arm in zip(row, arms, strict=True):
            times = [time for other, time in arms_and_times(found) if other == arm]
            for part in parts:
                for measured, (style, marker, _) in _MEASURED.items():
                    spreads = [curvature(found, arm, moment, time, part, measured) for time in times]
                    if any(one.n for one in spreads):
                        _line(axes, times, spreads, _PARTS[part][1], style, marker)
            set_epoch_ticks(axes, run.relax_epochs(), spacing=0.07)
        row[0].set_ylabel(f"curvature at its {moment} (log scale)")
    for axes, arm in zip(grid[0], arms, strict=True):
        axes.set_title(run.looks[arm].label, color=run.looks[arm].color, fontweight="bold")
    figure.supxlabel(f"relax time {T_W} (linear up to 1, then logarithmic)", fontsize=9)
    handles = [Line2D([], [], color=color, lw=2.0, label=label) for label, color in map(_PARTS.__getitem__, parts)]
    handles += [Line2D([], [], color="#555555", ls=style, marker=marker, ms=4, label=label)
                for style, marker, label in _MEASURED.values()]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper")
    caption = (
        "Does a net leave the CNN along flat directions? For each part of its weights, the curvature of the training "
        "loss in the direction that it took from its start to its end, beside the largest of all directions and their "
        "mean: below the mean is flat. Open markers stand for negative numbers. Means over seeds, bars are halves of "
        "the 95% confidence interval, downward at most 80% of the mean, as the axis is logarithmic."
    )
    alt = "Curvature of the loss by part of the weights, against the relax time, where nets start and end."
    return Drawing("landscape-curvature", figure, alt, caption)
