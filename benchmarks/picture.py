"""Draw a file of results: ``python -m benchmarks.picture RESULTS.json OUT.svg``; the site draws all."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from efcn_sparse.measure.vanilla import OURS, VARIANTS

BLUE, GRAY, TEXT = "#3d84e0", "#8c959f", "#808891"  # readable on white and on black: the ground is transparent
STYLE = {
    "font.size": 9, "text.color": TEXT, "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT,
    "axes.edgecolor": GRAY, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": GRAY, "grid.alpha": 0.3,
    "legend.frameon": False, "savefig.transparent": True, "svg.hashsalt": "efcn_sparse", "svg.fonttype": "none",
}  # fmt: skip
BLOCK, BATCH, DTYPE = 64, 256, "float32"
NETS = {"as dense nn.Linear layers": "dense", "by unfold and bmm": "unfold", "the CNN it came from": "cnn", OURS: OURS}
Rows = list[dict[str, Any]]


def drawable(results: dict[str, Any]) -> bool:
    """Whether the file has what a picture shows: a table by density, or both a layer's three products and a network."""
    return bool(_parts(results))


def picture(results: dict[str, Any]) -> str:
    """The whole SVG, with machine, versions and date in its last line."""
    machine, parts = results["machine"], _parts(results)
    with mpl.rc_context(STYLE):
        heights = [height for height, _, _ in parts]
        figure = Figure(figsize=(8, sum(heights)), layout="constrained")
        places = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
        for place, (_, draw, rows) in zip(places, parts, strict=True):
            draw(place, *rows)
        time = ", processor time" * ("processor time" in results.get("title", ""))
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}{time}"
        versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("efcn_sparse", "torch"))
        ground = f"{machine['cpu']}, {machine['capability']}, {threads}, {versions}, {machine['date'][:10]}"
        figure.supxlabel(ground, fontsize=8, x=0.01, ha="left")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _parts(results: dict[str, Any]) -> list[tuple[float, Callable[..., None], list[Rows]]]:
    """Inches of height, what draws them, and the tables that it draws."""
    tables = [rows for rows in results.get("tables", {}).values() if rows]
    by_density = [rows for rows in tables if "density" in rows[0]]
    products = [rows for rows in tables if rows not in by_density and any(row.get("op") == "dw" for row in rows)]
    steps = [rows for rows in tables if any(row.get("call") == f"step of {VARIANTS[OURS]}" for row in rows)]
    found: list[tuple[float, Callable[..., None], list[Rows]]] = []
    if products and steps:
        found.append((4.2, _bars, [products[0], steps[0]]))
    if by_density:
        found.append((3.6, _curves, [by_density[0]]))
    return found


def _bars(figure: FigureBase, products: Rows, calls: Rows) -> None:
    """The three products of a layer, and a training step of a network."""
    wanted = [(op, DTYPE, BATCH, BLOCK) for op in ("forward", "dx", "dw")]
    rows = [next(row for row in products if (row["op"], row["dtype"], row["N"], row["block"]) == one) for one in wanted]
    milliseconds = {row["call"]: row["ms"] for row in calls}
    layer = {
        "nn.Linear": [row["dense, ms"] for row in rows],
        "dense product of oneDNN": [row["ms"] * row["oneDNN / ours"] for row in rows],
        "torch.sparse (BSR and CSR)": [row["ms"] * row["torch.sparse / ours"] for row in rows],
        OURS: [row["ms"] for row in rows],
    }
    net = {label: [milliseconds[f"step of {VARIANTS[name]}"]] for label, name in NETS.items()}
    above, below = figure.subplots(2, 1)
    _stacked(above, layer)
    above.set_title(
        "One linear layer with 10% of its weights: milliseconds for forward, dX, dW\n"
        f"4096×4096, blocks of {BLOCK}×{BLOCK}, batch {BATCH}, fp32"
    )
    _stacked(below, net)
    below.set_title(
        "A CNN turned into a locally connected network: milliseconds for a training step\n"
        "VanillaCNN, 5.7 million weights, batch 250, fp32"
    )


def _stacked(axes: Axes, bars: dict[str, list[float]]) -> None:
    labels, colors = [*bars], [BLUE if label == OURS else GRAY for label in bars]
    left = [0.0] * len(bars)
    for alpha, parts in zip((1.0, 0.75, 0.5), zip(*bars.values(), strict=True), strict=False):
        drawn = axes.barh(labels, parts, left=left, color=colors, alpha=alpha)
        left = [so_far + part for so_far, part in zip(left, parts, strict=True)]
    axes.bar_label(drawn, [f"{total:.0f}" for total in left], padding=5)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelbottom=False)


def _curves(figure: FigureBase, rows: Rows) -> None:
    """Speed-up against density, a line for each batch: all three products of a layer, beside both dense products."""
    batches, densities = (sorted({row[key] for row in rows}) for key in ("N", "density"))
    rivals = {"nn.Linear": lambda row: row["dense, ms"]}
    if all(row["oneDNN / ours"] for row in rows):
        rivals["oneDNN's dense product"] = lambda row: row["ms"] * row["oneDNN / ours"]
    for axes, (rival, dense) in zip(figure.subplots(1, len(rivals), squeeze=False)[0], rivals.items(), strict=True):
        for batch, style in zip(batches, (":", "--", "-"), strict=False):
            of = [[row for row in rows if (row["N"], row["density"]) == (batch, density)] for density in densities]
            speed_up = [sum(map(dense, group)) / sum(row["ms"] for row in group) for group in of]
            axes.plot(densities, speed_up, style, color=BLUE, linewidth=2, label=f"batch {batch:,}")
        axes.set(xscale="log", yscale="log", xlabel="stored", title=f"Faster than {rival}, times")
        axes.set_xticks(densities, [f"{density:.0%}" for density in densities], minor=False)
        axes.set_yticks([0.5, 1, 2, 4, 8, 16, 32, 64], ["0.5", "1", "2", "4", "8", "16", "32", "64"])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.axhline(1, color=GRAY, linewidth=1)
        axes.legend()


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(picture(json.loads(Path(source).read_text())))
