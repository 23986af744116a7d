"""How the arms end: accuracy against the relax time, and what the stored weights give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efcn_sparse.analysis.claims import largest_efcn
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
from efcn_sparse.sizes import count_text
from efcn_sparse.training.arms import CNN, ELCN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


def draw_final_accuracy(run: Run) -> list[Drawing]:
    """The last test accuracy of every arm against t_w, and how far it is from the CNN's; none without evaluations.

    Twice: the second drawing is for narrow screens.
    """
    last = [final for final in finals(run) if final.test_accuracy.n]
    return [_draw_final(run, last, narrow) for narrow in (False, True)] if last else []


def _draw_final(run: Run, last: list[Final], narrow: bool) -> Drawing:
    times = run.relax_epochs()
    compared = [final for final in last if final.relax_epoch is not None and final.against_cnn.n]
    panels = 2 if compared else 1
    figure = new_figure(height=2.6 + 2.9 * panels, width=4.2) if narrow else new_figure(height=4.6)
    grid = figure.subplots(panels, 1) if narrow else figure.subplots(1, panels)
    axes, *beside = np.atleast_1d(grid)
    handles = [_band(axes, run, final) for final in last if final.relax_epoch is None]
    control = _control_line(axes, run, last)
    handles += [control] if control is not None else []
    relaxed = dict.fromkeys(final.arm for final in last if final.relax_epoch is not None)
    for position, arm in enumerate(relaxed):
        handles.append(_arm_line(axes, run, [final for final in last if final.arm == arm], position, "test_accuracy"))
    axes.set_ylabel("final test accuracy")
    for against in beside:
        against.axhline(0, color=run.looks[CNN].color, lw=1.2, ls="--")
        for position, arm in enumerate(dict.fromkeys(final.arm for final in compared)):
            _arm_line(against, run, [final for final in compared if final.arm == arm], position, "against_cnn")
        _limit_to_the_best(against, run, compared)
        against.set_ylabel("points above the CNN of the same epoch")
    for one in (axes, *beside):
        set_epoch_ticks(one, times or [0, 1], spacing=0.1 if narrow or beside else 0.05)
        if not times:
            one.set_xticks([])
        one.set_xlabel(f"relax time {T_W}" + ("" if narrow else " (linear up to 1, then logarithmic)"))
    figure.legend(handles=handles, loc="outside lower left" if narrow else "outside right upper")
    caption = (
        "Test accuracy at the last epoch of each training run. Lines and bands are means over seeds, bars and shades "
        "one standard deviation, small dots single seeds. The dashed line is the control: the CNN that went on at its "
        "own learning rate, read at the epoch at which the embedded nets of that relax time end."
    )
    if beside:
        caption += (
            " The second panel is the difference from it, seed by seed, in percentage points, and decides the second "
            "finding: its range is that of the two best nets of each relax time and of the largest eFCN at its best, "
            "and triangles at the edge stand for nets beyond it."
        )
    if not all(final.complete for final in last):
        caption += " Open markers: a seed has not come to its end."
    alt = "Final test accuracy against relax time for every arm, and the difference from the CNN of the same epoch."
    return Drawing("final-accuracy" + "-narrow" * narrow, figure, alt, caption)


def _limit_to_the_best(axes: Axes, run: Run, compared: list[Final]) -> None:
    """A range in which the best nets are told from the CNN; the others become triangles at the edge."""
    of_question = [100 * final.against_cnn.mean for final in compared if final.arm == largest_efcn(run)]
    shown = [0.0, *([max(of_question)] if of_question else [])]
    for time in {final.relax_epoch for final in compared}:
        of_time = (final.against_cnn for final in compared if final.relax_epoch == time)
        for one in sorted(of_time, key=lambda one: -one.mean)[:2]:
            shown += [100 * (one.mean - np.nan_to_num(one.std)), 100 * (one.mean + np.nan_to_num(one.std))]
    room = 0.08 * max(max(shown) - min(shown), 1.0)
    high = max(shown) + room
    low = max(min(shown) - room, -max(1.5 * high, 3.0))  # what is far below the CNN decides nothing
    axes.set_ylim(low, high)
    for final in compared:
        if 100 * final.against_cnn.mean < low:
            color = run.looks[final.arm].color
            axes.plot(final.relax_epoch or 0, low + 0.3 * room, "v", color=color, ms=5, mew=0, clip_on=False, zorder=5)


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


def _arm_line(axes: Axes, run: Run, last: list[Final], position: int, quantity: str) -> Line2D:
    """One arm over the relax times: ``test_accuracy``, or ``against_cnn`` in percentage points."""
    look, scale = run.looks[last[0].arm], 1 if quantity == "test_accuracy" else 100
    times, found = [final.relax_epoch or 0 for final in last], [_of(final, quantity) for final in last]
    means, bars = scale * np.array([one.mean for one in found]), scale * np.nan_to_num([one.std for one in found])
    axes.errorbar(times, means, bars, color=look.color, fmt="none", capsize=2.5, lw=1.0, alpha=0.8)
    for final in last if quantity == "test_accuracy" else ():
        singles = [trace.final(quantity) for trace in run.of(final.arm, final.relax_epoch)]
        if len(singles) > 1:
            axes.plot([final.relax_epoch or 0] * len(singles), singles, ".", color=look.color, ms=4, alpha=0.45, mew=0)
    (line,) = axes.plot(
        times, means, color=look.color, marker=look.marker, ms=5.5, mec="white", mew=0.6, lw=1.7, label=look.label,
        zorder=3 + 0.01 * position,
    )  # fmt: skip
    unfinished = [final for final in last if not final.complete]
    axes.plot(
        [final.relax_epoch or 0 for final in unfinished],
        [scale * _of(final, quantity).mean for final in unfinished],
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
            _line(axes, run, [final for final in at_time if not final.arm.moves_blocks], quantity, color, "-")
            grown = [final for final in at_time if final.arm.moves_blocks or final.arm == ELCN]
            if any(final.arm.moves_blocks for final in grown):
                _line(axes, run, grown, quantity, color, "--")
        axes.set_ylabel(_LABELS[quantity])
        _set_stored_ticks(axes, sorted({final.stored.mean for final in read}))
        if quantity != "test_accuracy":
            axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])
    figure.supxlabel("weights stored in the embedded layers (log scale)", fontsize=9)
    looks = [run.looks[arm] for arm in arms]
    handles = [Line2D([], [], color=look.color, marker=look.marker, ls="", ms=6, label=look.label) for look in looks]
    legend_of_times(figure, colors, handles)
    dashed = " Dashed lines lead to supports that grow." if any(arm.moves_blocks for arm in arms) else ""
    caption = (
        "What the embedded nets get for the weights that they store. Colors of lines are relax times, markers and "
        f"their colors are arms.{dashed} Accuracy and δ are those of the last epoch, the captured share is the mean "
        "over the epochs: 0 for the eLCN, 1 for the full eFCN. Means over seeds, bars are one standard deviation."
    )
    alt = "Final accuracy, deviation and captured off-local gradient against the number of stored weights."
    return [Drawing("stored-weights", figure, alt, caption)]


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
    axes.set_xticks(kept, [count_text(value) for value in kept])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
