"""Final test accuracy against the relax time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.figures.canvas import T_W, Drawing, new_figure, set_epoch_ticks
from efcn_sparse.analysis.palette import look_of
from efcn_sparse.analysis.run_data import Run
from efcn_sparse.analysis.statistics import Final, finals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def draw_final_accuracy(run: Run) -> list[Drawing]:
    """The last test accuracy of every arm against t_w, with CNN and FCN as bands; none without readings."""
    last = [final for final in finals(run) if final.test_accuracy.n]
    if not last:
        return []
    figure = new_figure(height=5.2)
    axes = figure.subplots()
    times = run.relax_epochs()
    handles = [_band(axes, run, final) for final in last if final.relax_epoch is None]
    control = _control_line(axes, last)
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
    look, got = look_of(final.arm, run.arms), final.test_accuracy
    if got.n > 1:
        axes.axhspan(got.mean - got.std, got.mean + got.std, color=look.color, alpha=0.13, lw=0)
    epochs = "–".join(str(epoch) for epoch in dict.fromkeys(final.epochs))
    label = f"{look.name}, epoch {epochs}: {got.text()}"
    return axes.axhline(got.mean, color=look.color, lw=1.6, label=label)


def _control_line(axes: Axes, last: list[Final]) -> Line2D | None:
    """The CNN at the epoch where the embedded nets end, where all of them end at the same."""
    at: dict[int, list[float]] = {}
    for final in last:
        if final.relax_epoch is not None and final.control.n:
            at.setdefault(final.relax_epoch, []).append(final.control.mean)
    if not at:
        return None
    times = sorted(at)
    means = [float(np.mean(at[time])) for time in times]
    (line,) = axes.plot(times, means, "--", color=look_of("cnn").color, lw=1.2, label="CNN at the same epoch (control)")
    return line


def _arm_line(axes: Axes, run: Run, arm: str, last: list[Final], position: int) -> Line2D:
    look = look_of(arm, run.arms)
    times = [final.relax_epoch or 0 for final in last]
    means = np.array([final.test_accuracy.mean for final in last])
    bars = np.nan_to_num([final.test_accuracy.std for final in last])
    axes.errorbar(times, means, bars, color=look.color, fmt="none", capsize=2.5, lw=1.0, alpha=0.8)
    for final in last:
        singles = [trace.final("test_accuracy") for trace in run.of(arm, final.relax_epoch)]
        if len(singles) > 1:
            axes.plot([final.relax_epoch or 0] * len(singles), singles, ".", color=look.color, ms=4, alpha=0.45, mew=0)
    (line,) = axes.plot(
        times, means, color=look.color, marker=look.marker, ms=5.5, mec="white", mew=0.6, lw=1.7, label=look.name,
        zorder=3 + 0.01 * position,
    )  # fmt: skip
    unfinished = [final for final in last if not final.complete]
    axes.plot(
        [final.relax_epoch or 0 for final in unfinished], [final.test_accuracy.mean for final in unfinished],
        ls="", marker=look.marker, ms=5.5, mfc="white", mec=look.color, mew=1.2, zorder=4,
    )  # fmt: skip
    return line
