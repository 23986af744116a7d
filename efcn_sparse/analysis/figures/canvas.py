"""The look of all figures, and how they reach the disk. Nothing here touches matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.run_data import Run, Trace
from efcn_sparse.analysis.statistics import mean_curve
from efcn_sparse.checkpoint.atomic import replace_atomically, write_all
from efcn_sparse.importing import require
from efcn_sparse.training.arms import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.5  # inches: 1150 px of the page
DPI = 200
LINEAR = 0.35  # how many decades the stretch from 0 to 1 is worth on an axis of relax times
T_W = "$t_\\mathrm{w}$"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "path",
    "svg.hashsalt": "efcn_sparse",
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Drawing:
    """A figure with what the page says of it.

    Attributes:
        name: file name without ending.
        alt: what it shows, for readers who do not see it.
        caption: how to read it.
    """

    name: str
    figure: Figure
    alt: str
    caption: str


@contextmanager
def drawing_style(needed_for: str = "a report") -> Iterator[None]:
    """Matplotlib with :data:`STYLE` inside the block.

    Raises:
        ModuleNotFoundError: matplotlib (the extra ``plot``) is not installed.
    """
    matplotlib = require("matplotlib", package="matplotlib", extra="plot", needed_for=needed_for)
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of ``width`` × ``height`` inches with constrained layout, on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(drawing: Drawing, folder: Path) -> tuple[Path, Path]:
    """Write ``folder``/name.png and .svg; the same figure gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    paths = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
    drawing.figure.dpi = DPI
    images = io.BytesIO(), io.BytesIO()
    # savefig() draws twice; what has a constrained layout finds its places in one draw, and keeps them
    FigureCanvasAgg(drawing.figure).print_png(images[0], metadata={"Software": None})
    drawing.figure.set_layout_engine("none")
    FigureCanvasSVG(drawing.figure).print_svg(images[1], metadata={"Date": None})
    for path, image in zip(paths, images, strict=True):
        replace_atomically(path, lambda file, image=image: write_all(file, image.getbuffer()))  # type: ignore[misc]
    return paths


def write_figure(figure: Figure, path: Path) -> None:
    """Write a ``.png`` or ``.svg`` file; the same figure gives the same bytes."""
    metadata: dict[str, Any] = {"Software": None} if path.suffix.lower() == ".png" else {"Date": None}
    figure.savefig(path, dpi=DPI, metadata=metadata)


def colors_of_times(run: Run, arms: Sequence[Arm] | None = None) -> dict[int, Any]:
    """The colors of the relax times of ``arms``: viridis by rank in the plan, dark is early.

    They do not change while a run goes on, and are the same in every figure. Both ends are left out, since a dark page
    turns lightness around.
    """
    from matplotlib import colormaps

    planned = run.config.relax_times
    steps = dict(zip(planned, np.linspace(0.05, 0.76, max(len(planned), 2)), strict=False))
    return {time: colormaps["viridis"](steps[time]) for time in run.relax_epochs(arms)}


def legend_of_times(figure: Figure, colors: dict[int, Any], extra: Sequence[Any] = ()) -> None:
    """A legend right of the axes with one line for each relax time of ``colors``, then ``extra`` handles."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, lw=2.0, label=f"epoch {time}") for time, color in colors.items()]
    if handles or extra:
        figure.legend(
            handles=[*handles, *extra],
            loc="outside right upper",
            title="relaxed at" if handles else None,
            alignment="left",
        )


def curve_since(
    axes: Axes, traces: Sequence[Trace], column: str, time: int, color: Any, low: float = -np.inf, high: float = np.inf
) -> None:
    """The mean over seeds since epoch ``time``, with a shade of one standard deviation that is cut off at limits."""
    if not traces:
        return
    epochs, mean, std = mean_curve(traces, column)
    if not epochs.size:
        return
    if std.any():
        axes.fill_between(epochs - time, *np.clip([mean - std, mean + std], low, high), color=color, alpha=0.12, lw=0)
    axes.plot(epochs - time, mean, color=color, lw=1.3, marker="o" if epochs.size == 1 else "", ms=4)


def set_epoch_ticks(axes: Axes, times: Sequence[int], spacing: float = 0.05) -> None:
    """A symlog x axis, linear from 0 to 1; of ``times``, those ``spacing`` of its length apart get labels."""
    axes.set_xscale("symlog", linthresh=1.0, linscale=LINEAR)
    if not times:
        return
    at = [_symlog(time) for time in times]
    room = max(at[-1] - at[0], 1e-9) * spacing
    kept: list[int] = []
    for time in reversed(times):  # the last time always has its label
        if not kept or _symlog(kept[-1]) - _symlog(time) >= room:
            kept.append(time)
    axes.set_xticks(kept[::-1], [str(time) for time in kept[::-1]])
    axes.set_xticks([time for time in times if time not in kept], minor=True)
    axes.set_xlim(*_padded(times[0], times[-1]))


def plain_log_labels(axes: Axes) -> None:
    """Plain numbers on a log y axis that spans few decades, so that more than its powers of ten have labels."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_ylim()
    decades = float(np.log10(high / low))
    if decades >= 2:
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if decades > 0.8 else (1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=STYLE["ytick.labelsize"])


def _symlog(value: float) -> float:
    return value * LINEAR if value <= 1 else LINEAR + float(np.log10(value))


def _padded(low: float, high: float) -> tuple[float, float]:
    """Limits a little outside [low, high] on the symlog axis."""
    width = max(_symlog(high) - _symlog(low), 0.3) * 0.05
    ends = (_symlog(low) - width, _symlog(high) + width)
    left, right = (end / LINEAR if end <= LINEAR else 10 ** (end - LINEAR) for end in ends)
    return left, right
