"""The curves, and how nets with restricted supports do, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efcn_sparse.analysis.figures.canvas import Drawing, drawing_style, new_figure, save
from efcn_sparse.benchmarking.off_local.curves import METHODS
from efcn_sparse.benchmarking.off_local.measure import OBJECTS
from efcn_sparse.benchmarking.off_local.train import TRAINED, TRAINED_BUDGETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008); the bound that nothing sparse can pass is grey
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
_LEAST = 0.05


def draw(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write off_local_capture and, where nets were trained, off_local_trained, as PNG and SVG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with drawing_style():
        drawings = [Drawing("off_local_capture", _capture(records), "", "")]
        if all("trained" in record for record in records):
            drawings.append(Drawing("off_local_trained", _trained(records), "", ""))
        return [path for drawing in drawings for path in save(drawing, folder)]


def _capture(records: Sequence[dict[str, Any]]) -> Figure:
    """Rows: what is held; columns: layers. Lines are means over records, bands the least and the largest."""
    layers = list(records[0]["layers"])
    figure = new_figure(2.7 * len(OBJECTS) + 0.6)
    axes = figure.subplots(len(OBJECTS), len(layers), sharey=True, squeeze=False)
    for row, (key, title) in zip(axes, OBJECTS.items(), strict=True):
        for cell, name in zip(row, layers, strict=True):
            for method in METHODS:
                _curve(cell, [record["layers"][name] for record in records], key, method)
            cell.set_title(f"{name}: {title}" if cell is row[0] else name, loc="left")
            cell.set_xscale("log")
            cell.set_xlim(_LEAST, records[0]["layers"][name]["off_local"] / records[0]["layers"][name]["local"])
            cell.xaxis.set_major_formatter("{x:g}")
            cell.set_ylim(0, 1.02)
        row[0].set_ylabel("share of the squared norm")
    for cell in axes[-1]:
        cell.set_xlabel("numbers stored / local weights")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _curve(axes: Axes, layers: list[dict[str, Any]], key: str, method: str) -> None:
    colour, marker, line = _LOOKS[method]
    curves = [layer["curves"][key][method]["points"] for layer in layers]
    local = layers[0]["local"]
    if method in _IN_STEPS:
        x = np.asarray(curves[0]["stored"]) / local
    else:
        x = np.geomspace(_LEAST, layers[0]["off_local"] / local, 120)
    at = [np.interp(x, np.asarray(c["stored"]) / local, c["share"], left=0.0) for c in curves]
    axes.plot(
        x,
        np.mean(at, 0),
        color=colour,
        ls=line,
        label=METHODS[method],
        marker=marker if method in _IN_STEPS else "",
        ms=4,
    )
    axes.fill_between(x, np.min(at, 0), np.max(at, 0), color=colour, alpha=0.15, lw=0)


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
                colour, marker, line = _LOOKS[method]
                x = np.asarray(TRAINED_BUDGETS) * 1.04 ** (number - len(TRAINED) / 2)
                whiskers = np.stack([mean - at.min(0), at.max(0) - mean])
                cell.errorbar(
                    x, mean, whiskers, color=colour, marker=marker, ls=line, ms=5, capsize=2, elinewidth=0.8,
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
