"""The curves, and how nets with restricted supports do, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import Drawing, drawing_style, new_figure, save
from experiments.off_local.curves import METHODS
from experiments.off_local.measure import BUDGETS, OBJECTS
from experiments.off_local.train import TRAINED, TRAINED_BUDGETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008); the bound that nothing sparse can pass is gray
_LOOKS = {
    "entries": ("#8a8a8a", "o", "--"),
    "blocks": ("#0072b2", "s", "-"),
    "small blocks": ("#56b4e9", "D", "-"),
    "low rank": ("#d55e00", "^", "-"),
    "low rank, fitted": ("#e69f00", "v", "-"),
    "low rank, random": ("#cc79a7", "v", "-"),
    "low rank, everywhere": ("#e69f00", ">", "-"),
    "dilated": ("#009e73", "P", "-"),
}
_NAMES = {
    **METHODS,
    "low rank": "low rank",
    "low rank, random": "low rank, random V",
    "low rank, everywhere": "low rank, unrestricted",
}
_IN_STEPS = ("low rank, fitted", "dilated")  # known at few points only
_MOST = 4.0  # of the local weights: beyond, all lines meet
_SHORT = {"gradient": "gradient, all images", "batch gradient": "gradient, one batch", "weights": "final weights"}


def draw(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write off_local_capture and, where nets were trained, off_local_trained, as PNG and SVG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with drawing_style():
        drawings = [Drawing("off_local_capture", _capture(records), "", "")]
        with_training = [record for record in records if "trained" in record]
        if with_training:
            drawings.append(Drawing("off_local_trained", _trained(with_training), "", ""))
        return [path for drawing in drawings for path in save(drawing, folder)]


def _capture(records: Sequence[dict[str, Any]]) -> Figure:
    """Rows: what is held; columns: layers. Lines are means over records, bands the least and the largest."""
    layers = records[0]["layers"]
    figure = new_figure(2.7 * len(OBJECTS) + 0.6)
    axes = figure.subplots(len(OBJECTS), len(layers), sharey=True, sharex="col", squeeze=False)
    for row, key in zip(axes, OBJECTS, strict=True):
        for cell, (name, layer) in zip(row, layers.items(), strict=True):
            for method in METHODS:
                _curve(cell, [record["layers"][name] for record in records], key, method)
            cell.set_title(name, loc="left")
            cell.set_xlim(0, min(layer["off_local"] / layer["local"], _MOST))
            cell.set_ylim(0, 1.02)
        row[0].set_ylabel(f"share of the {_SHORT[key]}")
    for cell in axes[-1]:
        cell.set_xlabel("numbers stored / local weights")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _curve(axes: Axes, layers: list[dict[str, Any]], key: str, method: str) -> None:
    color, marker, line = _LOOKS[method]
    local, curves = layers[0]["local"], [layer["curves"][key][method] for layer in layers]
    x = np.asarray(curves[0]["points"]["stored"]) / local
    if method not in _IN_STEPS:
        x, marker = np.union1d(np.concatenate([x, BUDGETS]), [0.0]), ""
    at = [_at(curve, local, x, method) for curve in curves]
    axes.plot(x, np.mean(at, 0), color=color, ls=line, label=METHODS[method], marker=marker, ms=4)
    axes.fill_between(x, np.min(at, 0), np.max(at, 0), color=color, alpha=0.15, lw=0)


def _at(curve: dict[str, Any], local: int, x: Any, method: str) -> Any:
    """The shares at ``x``, from the thinned curve and what is known at BUDGETS."""
    points = dict(zip(np.asarray(curve["points"]["stored"]) / local, curve["points"]["share"], strict=True))
    if method not in _IN_STEPS:
        points |= {0.0: 0.0, **dict(zip(BUDGETS, curve["at"], strict=True))}
    known = sorted(points)
    return np.interp(x, known, [points[place] for place in known])


def _trained(records: Sequence[dict[str, Any]]) -> Figure:
    """Columns: relax times; test accuracy above, training loss below; points are means, whiskers least and largest."""
    times = sorted({record["time"] for record in records})
    figure = new_figure(5.4, 4.4 * len(times))
    axes = figure.subplots(2, len(times), sharey="row", squeeze=False)
    for column, time in zip(axes.T, times, strict=True):
        some = [record for record in records if record["time"] == time]
        for cell, key in zip(column, ("test_accuracy", "train_loss"), strict=True):
            for number, method in enumerate(TRAINED):
                at = np.array([[outcome[key] for outcome in record["trained"][method]] for record in some])
                mean = at.mean(0)
                color, marker, line = _LOOKS[method]
                x = np.asarray(TRAINED_BUDGETS) * 1.04 ** (number - len(TRAINED) / 2)
                whiskers = np.stack([mean - at.min(0), at.max(0) - mean])
                cell.errorbar(
                    x, mean, whiskers, color=color, marker=marker, ls=line, ms=5, capsize=2, elinewidth=0.8,
                    label=_NAMES[method],
                )  # fmt: skip
            for name, outcomes, line in (
                ("eLCN", [record["trained"]["nothing"][key] for record in some], ":"),
                ("Full()", [record["end"][key] for record in some], "-."),
            ):
                cell.axhline(float(np.mean(outcomes)), color="#1b1b1b", ls=line, lw=1.0, label=name)
            cell.set_xscale("log")
            cell.set_xticks(TRAINED_BUDGETS, [f"{budget:g}" for budget in TRAINED_BUDGETS])
            cell.minorticks_off()
        column[1].set_yscale("log")
        column[0].set_title(f"relaxed at epoch {time}", loc="left")
        column[1].set_xlabel("off-local numbers stored / local weights")
    axes[0][0].set_ylabel("test accuracy at the end")
    axes[1][0].set_ylabel("training loss at the end")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure
