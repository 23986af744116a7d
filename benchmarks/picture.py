"""Draw the README's picture from a page of results: ``python -m benchmarks.picture RESULTS.json OUT.svg``.

One SVG for light and dark pages: its style sheet asks which one the reader has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from efcn_sparse.measure.vanilla import OURS, VARIANTS

STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 }
  .note { font-size: 12px; fill: #57606a }
  .ours { fill: #0969da }
  .rival { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .note { fill: #9ea7b3 }
    .ours { fill: #4493f8 }
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


def picture(results: dict[str, Any]) -> str:
    """The whole SVG."""
    machine = results["machine"]
    tall, lines = 44 + 4 * ROW + 18, []
    for i, panel in enumerate(panels(results)):
        lines += drawn(panel, i * tall)
    height = 2 * tall + 16
    versions = f"torch {machine['versions']['torch']}, {machine['date'][:10]}"
    lines.append(
        f'<text class="note" x="0" y="{height - 6}">{machine["cpu"]}, {machine["capability"]}, '
        f"{machine['threads']} threads, {versions}</text>"
    )
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(picture(json.loads(Path(source).read_text())))
