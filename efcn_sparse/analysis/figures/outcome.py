"""How the arms end: accuracy against the relax time, and what the stored weights give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.figures.canvas import (
    T_W,
    Drawing,
    colors_of_times,
    legend_of_times,
    new_figure,
    set_epoch_ticks,
)
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.statistics import Final, Spread, finals
from efcn_sparse.training.arms import CNN, ELCN, Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def draw_final_accuracy(run: Run) -> list[Drawing]:
    """The last test accuracy of every arm against t_w, with CNN and FCN as bands; none without evaluations."""
    last = [final for final in finals(run) if final.test_accuracy.n]
    if not last:
        return []
    figure = new_figure(height=5.2)
    axes = figure.subplots()
    times = run.relax_epochs()
    handles = [_band(axes, run, final) for final in last if final.relax_epoch is None]
    control = _control_line(axes, run, last)
    handles += [control] if control is not None else []
    for position, arm in enumerate(arm for arm in run.arms if run.relax_epochs([arm])):
        handles.append(_arm_line(axes, run, arm, [final for final in last if final.arm == arm], position))
    set_epoch_ticks(axes, times or [0, 1])
    if not times:
        axes.set_xticks([])
    axes.set_xlabel(f"relax time {T_W}: the epoch at which the CNN is embedded (linear up to 1, then logarithmic)")
    axes.set_ylabel("final test accuracy")
    figure.legend(handles=handles, loc="outside right upper")
    open_markers = "" if all(final.complete for final in last) else " Open markers: a seed has not come to its end."
    caption = (
        "Test accuracy at the last epoch of each training run. Lines and bands are means over seeds, bars and shades "
        "one standard deviation, small dots single seeds. The dashed line is the control: the CNN that went on at its "
        "own learning rate, read at the epoch at which the embedded nets of that relax time end." + open_markers
    )
    return [Drawing("final-accuracy", figure, "Final test accuracy against relax time for every arm.", caption)]


def _band(axes: Axes, run: Run, final: Final) -> Line2D:
    look, got = run.looks[final.arm], final.test_accuracy
    if got.n > 1:
        axes.axhspan(got.mean - got.std, got.mean + got.std, color=look.color, alpha=0.13, lw=0)
    epochs = "–".join(str(epoch) for epoch in dict.fromkeys(final.epochs))
    label = f"{look.label}, epoch {epochs}: {got.text()}"
    return axes.axhline(got.mean, color=look.color, lw=1.6, label=label)


def _control_line(axes: Axes, run: Run, last: list[Final]) -> Line2D | None:
    """The CNN at the epoch where the embedded nets end, where all of them end at the same."""
    at: dict[int, list[float]] = {}
    for final in last:
        if final.relax_epoch is not None and final.control.n:
            at.setdefault(final.relax_epoch, []).append(final.control.mean)
    if not at:
        return None
    times = sorted(at)
    means = [float(np.mean(at[time])) for time in times]
    (line,) = axes.plot(times, means, "--", color=run.looks[CNN].color, lw=1.2, label="CNN at the same epoch (control)")
    return line


def _arm_line(axes: Axes, run: Run, arm: Arm, last: list[Final], position: int) -> Line2D:
    look = run.looks[arm]
    times = [final.relax_epoch or 0 for final in last]
    means = np.array([final.test_accuracy.mean for final in last])
    bars = np.nan_to_num([final.test_accuracy.std for final in last])
    axes.errorbar(times, means, bars, color=look.color, fmt="none", capsize=2.5, lw=1.0, alpha=0.8)
    for final in last:
        singles = [trace.final("test_accuracy") for trace in run.of(arm, final.relax_epoch)]
        if len(singles) > 1:
            axes.plot([final.relax_epoch or 0] * len(singles), singles, ".", color=look.color, ms=4, alpha=0.45, mew=0)
    (line,) = axes.plot(
        times, means, color=look.color, marker=look.marker, ms=5.5, mec="white", mew=0.6, lw=1.7, label=look.label,
        zorder=3 + 0.01 * position,
    )  # fmt: skip
    unfinished = [final for final in last if not final.complete]
    axes.plot(
        [final.relax_epoch or 0 for final in unfinished], [final.test_accuracy.mean for final in unfinished],
        ls="", marker=look.marker, ms=5.5, mfc="white", mec=look.color, mew=1.2, zorder=4,
    )  # fmt: skip
    return line


_LABELS = {
    "test_accuracy": "final test accuracy",
    "delta": "final δ, off-local share of ‖W‖",
    "captured": "share of the squared off-local\ngradient that the support holds",
}


def draw_stored_weights(run: Run) -> list[Drawing]:
    """Final accuracy, δ and captured share against the stored weights; none where they were not read."""
    from matplotlib.lines import Line2D

    read = [final for final in finals(run) if final.arm in run.embedded_arms and final.stored.n]
    if not read:
        return []
    arms = [arm for arm in run.embedded_arms if any(final.arm == arm for final in read)]
    colors = colors_of_times(run, arms)
    figure = new_figure(height=3.6)
    panels = dict(zip(_LABELS, figure.subplots(1, len(_LABELS)), strict=True))
    for quantity, axes in panels.items():
        for time, color in colors.items():
            at_time = [final for final in read if final.relax_epoch == time]
            _line(axes, run, [final for final in at_time if not _is_grown(final)], quantity, color, "-")
            grown = [final for final in at_time if _is_grown(final) or final.arm == ELCN]
            if any(map(_is_grown, grown)):
                _line(axes, run, grown, quantity, color, "--")
        axes.set_ylabel(_LABELS[quantity])
        _set_stored_ticks(axes, sorted({final.stored.mean for final in read}))
        if quantity != "test_accuracy":
            axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
    figure.supxlabel("weights stored in the embedded layers (log scale)", fontsize=9)
    looks = [run.looks[arm] for arm in arms]
    handles = [Line2D([], [], color=look.color, marker=look.marker, ls="", ms=6, label=look.label) for look in looks]
    legend_of_times(figure, colors, handles)
    dashed = " Dashed lines lead to supports that grow." if any(map(_is_grown, read)) else ""
    caption = (
        "What the embedded nets get for the weights that they store. Colors of lines are relax times, markers and "
        f"their colors are arms.{dashed} Accuracy and δ are those of the last epoch, the captured share is the mean "
        "over the epochs: 0 for the eLCN, 1 for the full eFCN. Means over seeds, bars are one standard deviation."
    )
    alt = "Final accuracy, deviation and captured off-local gradient against the number of stored weights."
    return [Drawing("stored-weights", figure, alt, caption)]


def _is_grown(final: Final) -> bool:
    return final.arm.support is not None and final.arm.support.moves_blocks


def _line(axes: Axes, run: Run, points: list[Final], quantity: str, color: object, style: str) -> None:
    points = sorted((final for final in points if _of(final, quantity).n), key=lambda final: final.stored.mean)
    if not points:
        return
    x, y = [final.stored.mean for final in points], [_of(final, quantity).mean for final in points]
    bars = np.nan_to_num([_of(final, quantity).std for final in points])
    axes.errorbar(x, y, bars if bars.any() else None, color=color, ls=style, lw=1.2, elinewidth=0.8, capsize=2)
    for final, at, height in zip(points, x, y, strict=True):
        look = run.looks[final.arm]
        axes.plot(at, height, look.marker, color=look.color, ms=6, mec="white", mew=0.6, zorder=3)


def _of(final: Final, quantity: str) -> Spread:
    found: Spread = getattr(final, quantity)
    return found


def _set_stored_ticks(axes: Axes, stored: list[float]) -> None:
    """A log axis whose labels are the numbers of weights themselves, where there is room for them."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xscale("log")
    span = max(stored[-1] / stored[0], 1.5)
    axes.set_xlim(stored[0] / span**0.08, stored[-1] * span**0.08)
    kept: list[float] = []
    for value in reversed(stored):  # the largest always has its label
        if not kept or kept[-1] / value > span**0.15:
            kept.append(value)
    axes.set_xticks(kept, [_short(value) for value in kept])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
