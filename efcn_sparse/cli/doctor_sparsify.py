"""``efcn-sparse doctor --sparsify``: below which density block-sparse layers are faster here than a model's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from efcn_sparse.cli.targets import factory_of, picture_path
from efcn_sparse.importing import require

if TYPE_CHECKING:
    from efcn_sparse.measure.advise import Advice


def run(args: argparse.Namespace) -> int:
    """Time the model's linear layers and print what pays."""
    import torch
    from torch import nn

    from efcn_sparse.measure.advise import advise
    from efcn_sparse.measure.machine import describe

    others = (
        "input", "optimizer", "budget", "support", "supports", "layers", "leave_uncalled", "fused", "measure",
    )  # fmt: skip
    for name in [name for name in others if getattr(args, name)]:
        raise ValueError(f"{args.spelt[name]} must be left out with --sparsify, which embeds nothing")
    if args.batch is None or not (args.batch.isascii() and args.batch.isdigit() and int(args.batch) >= 1):
        raise ValueError(f"--batch must be an integer of at least 1, the rows of each layer's input, got {args.batch}")
    picture = picture_path("--plot", args.picture)
    if picture is not None:
        require("matplotlib", package="matplotlib", extra="plot", needed_for="--plot")
    dtype = getattr(torch, args.dtype, None)
    with torch.device("meta"):
        model = factory_of(args.model)()
    model = model[0] if isinstance(model, tuple) and model else model
    if not isinstance(model, nn.Module) or not isinstance(dtype, torch.dtype):
        raise ValueError(f"MODEL must return an nn.Module and --dtype be one of torch, got {args.model}, {args.dtype}")
    advice = advise(model, int(args.batch), dtype=dtype)
    if picture is not None:
        draw(advice, args.model, picture)
    told = {**advice.as_dict(), "machine": describe(advice.threads)}
    print(json.dumps(told, indent=2) if args.json else advice)
    return 0


def draw(advice: Advice, name: str, path: Path) -> None:
    """One panel for each shape: speed-ups over the stored density, solid in training and dashed forward."""
    from efcn_sparse.analysis.figures.canvas import drawing_style, new_figure, write_figure

    with drawing_style(needed_for="--plot"):
        columns = min(3, len(advice.layers))
        rows = -(-len(advice.layers) // columns)
        figure = new_figure(0.6 + 2.8 * rows, 0.4 + 3.6 * columns)
        figure.suptitle(f"{name}: speed-up over nn.Linear, batch {advice.batch}, {advice.threads} thread(s)")
        for number, layer in enumerate(advice.layers):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.axhline(1.0, color="#555555", linewidth=0.8)
            for color, block_shape in enumerate(dict.fromkeys(timing.block_shape for timing in layer.timings)):
                timings = layer.of(block_shape)
                for phase, style in (("training", "-"), ("forward", "--")):
                    label = f"{block_shape[0]}×{block_shape[1]}" if phase == "training" else None
                    speed_ups = [layer.speed_up(timing, phase) for timing in timings]
                    axes.plot([t.stored for t in timings], speed_ups, style, marker=".", color=f"C{color}", label=label)
            densities = sorted({timing.density for timing in layer.timings})
            axes.set(xscale="log", yscale="log", xlabel="density stored", title="×".join(map(str, layer.shape)))
            axes.set_xticks(densities, [f"{density:g}" for density in densities])
            axes.yaxis.set_major_formatter("{x:g}×")
            axes.legend(title="training (dashed: forward)")
        write_figure(figure, path)
