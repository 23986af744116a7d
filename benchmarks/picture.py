"""Draw the README's picture from a page of results: ``python -m benchmarks.picture RESULTS.json OUT.svg``.

One SVG for light and dark pages: its style sheet asks which one the reader has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

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
LAYER = {
    "nn.Linear": ("dense", "dense", "dense"),
    "dense product of oneDNN": ("dense_onednn", "dense_onednn", "dense_onednn"),
    "torch.sparse (BSR and CSR)": ("torch_sparse_bsr", "torch_sparse_bsr", "torch_sparse_csr"),
    "efcn_sparse": ("efcn_sparse", "efcn_sparse", "efcn_sparse"),
}
NETS = {
    "as dense nn.Linear layers": "efcn_dense",
    "by unfold and bmm": "lcn_unfold",
    "the CNN it came from": "cnn",
    "efcn_sparse": "efcn_sparse",
}


class Panel(NamedTuple):
    """A title, a note under it, and for each row its label and the milliseconds of its parts."""

    title: str
    note: str
    bars: dict[str, tuple[float, ...]]


def panels(results: dict[str, Any]) -> list[Panel]:
    """The three products of a layer, and a training step of a network."""
    times = {
        op["op"]: {who: 1000 * spread["median"] for who, spread in op["seconds"].items()}
        for op in results["ops"]
        if (op["block"], op["batch"], op["dtype"]) == (BLOCK, BATCH, DTYPE)
    }
    net = results["vanilla"]
    return [
        Panel(
            "One linear layer with 10% of its weights: milliseconds",
            "forward, gradient of the input, gradient of the weights (from left to right); "
            f"4096×4096, blocks of {BLOCK}×{BLOCK}, batch {BATCH}, fp32",
            {
                label: tuple(times[op][name] for op, name in zip(("forward", "dx", "dw"), names, strict=True))
                for label, names in LAYER.items()
            },
        ),
        Panel(
            "A CNN turned into a locally connected network: milliseconds for a training step",
            f"VanillaCNN, {net['parameters']['efcn_sparse'] / 1e6:.1f} million weights, batch {net['batch']}, fp32",
            {label: (1000 * net["seconds"][name]["median"],) for label, name in NETS.items()},
        ),
    ]


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
            kind = "ours" if label == "efcn_sparse" else "rival"
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
