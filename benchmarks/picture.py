"""Draw pictures from files of results: ``python -m benchmarks.picture RESULTS.json OUT.svg``; the site draws all.

One SVG for light and dark pages: its style sheet asks which one the reader has.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from efcn_sparse.measure.vanilla import OURS, VARIANTS

STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 }
  .note { font-size: 12px; fill: #57606a }
  .ours { fill: #0969da }
  .rival { fill: #8c959f }
  .axis { stroke: #8c959f; stroke-width: 1 }
  .line { fill: none; stroke: #0969da; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .note { fill: #9ea7b3 }
    .ours { fill: #4493f8 }
    .line { stroke: #4493f8 }
    .rival { fill: #6e7681 }
  }
"""
WIDTH, LEFT, ROW, BAR = 760, 236, 26, 18
BLOCK, BATCH, DTYPE = 64, 256, "float32"
NETS = {"as dense nn.Linear layers": "dense", "by unfold and bmm": "unfold", "the CNN it came from": "cnn", OURS: OURS}


class Panel(NamedTuple):
    """A title, a note under it, and for each row its label and the milliseconds of its parts."""

    title: str
    note: str
    bars: dict[str, tuple[float, ...]]


def panels(results: dict[str, Any]) -> list[Panel]:
    """The three products of a layer, and a training step of a network."""
    layer, net = (_layer_1(results), _net_1(results)) if results["schema"] == 1 else (_layer(results), _net(results))
    return [
        Panel(
            "One linear layer with 10% of its weights: milliseconds",
            "forward, gradient of the input, gradient of the weights (from left to right); "
            f"4096×4096, blocks of {BLOCK}×{BLOCK}, batch {BATCH}, fp32",
            layer,
        ),
        Panel(
            "A CNN turned into a locally connected network: milliseconds for a training step",
            "VanillaCNN, 5.7 million weights, batch 250, fp32",
            net,
        ),
    ]


def _chosen(rows: list[dict[str, Any]], batch: str) -> list[dict[str, Any]]:
    wanted = (BLOCK, BATCH, DTYPE)
    return [
        next(row for row in rows if (row["block"], row[batch], row["dtype"], row["op"]) == (*wanted, op))
        for op in ("forward", "dx", "dw")
    ]


def _layer(results: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    rows = _chosen(next(rows for rows in results["tables"].values() if "op" in rows[0]), "N")
    return {
        "nn.Linear": tuple(row["dense, ms"] for row in rows),
        "dense product of oneDNN": tuple(row["ms"] * row["oneDNN / ours"] for row in rows),
        "torch.sparse (BSR and CSR)": tuple(row["ms"] * row["torch.sparse / ours"] for row in rows),
        OURS: tuple(row["ms"] for row in rows),
    }


def _net(results: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    rows = next(rows for rows in results["tables"].values() if "call" in rows[0])
    milliseconds = {row["call"]: (row["ms"],) for row in rows}
    return {label: milliseconds[f"step of {VARIANTS[name]}"] for label, name in NETS.items()}


def _layer_1(results: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Of files that efcn_sparse 0.1.0 wrote."""
    times = [row["seconds"] for row in _chosen(results["ops"], "batch")]
    sparse = [("torch_sparse_csr" if "torch_sparse_csr" in seconds else "torch_sparse_bsr") for seconds in times]
    return {
        "nn.Linear": tuple(1000 * seconds["dense"]["median"] for seconds in times),
        "dense product of oneDNN": tuple(1000 * seconds["dense_onednn"]["median"] for seconds in times),
        "torch.sparse (BSR and CSR)": tuple(
            1000 * seconds[name]["median"] for seconds, name in zip(times, sparse, strict=True)
        ),
        OURS: tuple(1000 * seconds[OURS]["median"] for seconds in times),
    }


def _net_1(results: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    names = {"dense": "efcn_dense", "unfold": "lcn_unfold", "cnn": "cnn", OURS: OURS}
    seconds = results["vanilla"]["seconds"]
    return {label: (1000 * seconds[names[name]]["median"],) for label, name in NETS.items()}


def drawn(panel: Panel, top: float) -> list[str]:
    """The elements of one panel whose upper edge is at ``top``."""
    scale = (WIDTH - LEFT - 70) / max(sum(parts) for parts in panel.bars.values())
    lines = [
        f'<text class="title" x="0" y="{top + 14}">{panel.title}</text>',
        f'<text class="note" x="0" y="{top + 33}">{panel.note}</text>',
    ]
    for i, (label, parts) in enumerate(panel.bars.items()):
        y, x = top + 44 + i * ROW, float(LEFT)
        lines.append(f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end">{label}</text>')
        for opacity, part in zip((1.0, 0.75, 0.55), parts, strict=False):
            kind = "ours" if label == OURS else "rival"
            width = scale * part
            lines.append(
                f'<rect class="{kind}" opacity="{opacity}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR}"/>'
            )
            x += width
        lines.append(f'<text x="{x + 8:.1f}" y="{y + 14}">{sum(parts):.0f}</text>')
    return lines


def bars(results: dict[str, Any]) -> tuple[list[str], int]:
    """The elements of both panels, and how high they are."""
    tall, lines = 44 + 4 * ROW + 18, []
    for i, panel in enumerate(panels(results)):
        lines += drawn(panel, i * tall)
    return lines, 2 * tall


def curves(rows: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Speed-up against density, a line for each batch: all three products of a layer, beside both dense products."""
    times: dict[tuple[int, float], list[tuple[float, float, float]]] = defaultdict(list)
    for row in rows:
        times[row["N"], row["density"]].append((row["ms"], row["dense, ms"], row["ms"] * (row["oneDNN / ours"] or 0)))
    sums = {key: tuple(map(sum, zip(*parts, strict=True))) for key, parts in times.items()}
    densities = sorted({density for _, density in sums})
    lines, (top, height, width) = [], (40, 240, 270)
    for panel, title in enumerate(("Faster than nn.Linear, times", "Faster than oneDNN's dense product, times")):
        left = 30 + panel * 380
        if not all(times[1 + panel] for times in sums.values()):
            continue

        def x(density: float, left: int = left) -> float:
            return left + width * math.log(density / densities[0]) / math.log(densities[-1] / densities[0])

        def y(speed_up: float) -> float:
            return top + height * (1 - math.log(max(speed_up, 0.5) / 0.5) / math.log(128))

        lines.append(f'<text class="title" x="{left - 24}" y="16">{title}</text>')
        for tick in (0.5, 1, 2, 4, 8, 16, 32, 64):
            dash = "" if tick == 1 else ' stroke-opacity=".25"'
            place = f'x1="{left}" x2="{left + width}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"'
            lines.append(f'<line class="axis" {place}{dash}/>')
            lines.append(f'<text class="note" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for density in densities:
            place = f'x="{x(density):.1f}" y="{top + height + 18}"'
            lines.append(f'<text class="note" {place} text-anchor="middle">{density:.0%}</text>')
        lines.append(
            f'<text class="note" x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">stored</text>'
        )
        for i, batch in enumerate(sorted({batch for batch, _ in sums})):
            points = [(x(d), y(sums[batch, d][1 + panel] / sums[batch, d][0])) for d in densities]
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            dash = ("1 4", "7 4", "")[i % 3]
            lines.append(f'<polyline class="line" stroke-dasharray="{dash}" stroke-linecap="round" points="{path}"/>')
            sample = f"{left + 165},{52 + 18 * i} {left + 195},{52 + 18 * i}"
            lines.append(f'<polyline class="line" stroke-dasharray="{dash}" points="{sample}"/>')
            lines.append(f'<text class="note" x="{left + 202}" y="{56 + 18 * i}">batch {batch:,}</text>')
    return lines, top + height + 50


def drawable(results: dict[str, Any]) -> bool:
    """Whether the file has what a picture shows: a table by density, or both a layer's three products and a network."""
    rows = [row for table in results.get("tables", {}).values() for row in table]
    whole = any(row.get("op") == "dw" for row in rows) and any("call" in row for row in rows)
    return results.get("schema") == 1 or any("density" in row for row in rows) or whole


def picture(results: dict[str, Any]) -> str:
    """The whole SVG, with machine, versions and date in its last line."""
    machine = results["machine"]
    by_density = [rows for rows in results.get("tables", {}).values() if "density" in rows[0]]
    lines, height = curves(by_density[0]) if by_density else bars(results)
    time = ", processor time" * ("processor time" in results.get("title", ""))
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}{time}"
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("efcn_sparse", "torch"))
    lines.append(
        f'<text class="note" x="0" y="{height + 10}">{machine["cpu"]}, {machine["capability"]}, '
        f"{threads}, {versions}, {machine['date'][:10]}</text>"
    )
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + 16}" width="{WIDTH}" '
        f'height="{height + 16}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(picture(json.loads(Path(source).read_text())))
