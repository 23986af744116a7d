"""A plan and a step as text and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from efcn_sparse.sizes import size_text

if TYPE_CHECKING:
    from efcn_sparse.embedding.plan import EmbeddingPlan, LayerPlan
    from efcn_sparse.planning.budget import Fit, Step
    from efcn_sparse.planning.step import StepPrediction

_HEAD = (
    "layer", "input", "output", "matrix", "support", "block", "blocks", "local", "stored", "of full", "memory"
)  # fmt: skip
_PARTS = {
    "inputs": "the batch",
    "weights": "parameters and buffers",
    "structure": "patterns and ties, about",
    "optimizer": "its state",
    "gradients": "after the backward pass",
    "activations": "held for the backward pass",
    "workspace": "of fused updates",
    "peak": "held at one time, at most",
}
_IN_SUPPORT = ("support_weights", "stored_blocks", "stored_weights", "bytes")


def table(planned: EmbeddingPlan) -> str:
    """A line per layer, and the sums."""
    rows: list[tuple[str, ...]] = [_HEAD, *(_row(layer) for layer in planned.layers)]
    share = planned.stored_weights / planned.full_weights
    sums = (f"{planned.local_weights:,}", f"{planned.stored_weights:,}", f"{share:.2%}", size_text(planned.bytes))
    rows.append(("total", "", "", "", "", "", f"{planned.stored_blocks:,}", *sums))
    return _ruled(rows, words=_HEAD.index("blocks"))


def supports_table(plans: Mapping[str, EmbeddingPlan]) -> str:
    """What each layer stores in each support, by its name: numbers and memory."""
    rows: list[tuple[str, ...]] = [("layer", *(head for name in plans for head in (name, "memory")))]
    columns = list(plans.values())
    lines = zip(*(planned.layers for planned in columns), strict=True)
    rows += [(layers[0].name, *(cell for layer in layers for cell in _stored(layer))) for layers in lines]
    rows.append(("total", *(cell for planned in columns for cell in _stored(planned))))
    return _ruled(rows, words=1)


def _stored(held: LayerPlan | EmbeddingPlan) -> tuple[str, str]:
    return f"{held.stored_weights:,}", size_text(held.bytes)


def _ruled(rows: list[tuple[str, ...]], words: int) -> str:
    """Columns of ``words`` to the left, then of numbers to the right; a rule below the head and above the sums."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = list(zip(row, widths, strict=True))
        left = [cell.ljust(width) for cell, width in cells[:words]]
        lines.append("  ".join([*left, *(cell.rjust(width) for cell, width in cells[words:])]).rstrip())
    rule = "-" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def as_dict(planned: EmbeddingPlan) -> dict[str, Any]:
    """The plan as plain data."""
    layers = [
        {
            "name": layer.name,
            "input_size": [layer.geometry.in_channels, *layer.geometry.input_size],
            "output_size": [layer.geometry.out_channels, *layer.geometry.output_size],
            "shape": list(layer.shape),
            "support": str(layer.support),
            "block_shape": list(layer.block_shape),
            **_numbers(layer, "local_weights", *_IN_SUPPORT, "full_weights"),
        }
        for layer in planned.layers
    ]
    return {"layers": layers, "total": _numbers(planned, "local_weights", *_IN_SUPPORT, "full_weights")}


def add_supports(told: dict[str, Any], plans: Mapping[str, EmbeddingPlan]) -> None:
    """To what :func:`as_dict` gave, add what each layer stores in each support."""
    for number, layer in enumerate(told["layers"]):
        held = {name: planned.layers[number] for name, planned in plans.items()}
        layer["supports"] = {
            name: {"block_shape": list(there.block_shape), **_numbers(there, *_IN_SUPPORT)}
            for name, there in held.items()
        }
    told["total"]["supports"] = {name: _numbers(planned, *_IN_SUPPORT) for name, planned in plans.items()}


def _numbers(held: LayerPlan | EmbeddingPlan, *names: str) -> dict[str, int]:
    return {name: getattr(held, name) for name in names}


def _row(layer: LayerPlan) -> tuple[str, ...]:
    geometry = layer.geometry
    return (
        layer.name,
        "×".join(map(str, (geometry.in_channels, *geometry.input_size))),
        "×".join(map(str, (geometry.out_channels, *geometry.output_size))),
        "×".join(f"{side:,}" for side in layer.shape),
        str(layer.support),
        "×".join(map(str, layer.block_shape)),
        f"{layer.stored_blocks:,}",
        f"{layer.local_weights:,}",
        f"{layer.stored_weights:,}",
        f"{layer.stored_weights / layer.full_weights:.2%}",
        size_text(layer.bytes),
    )


def step_lines(step: Step, predicted: StepPrediction) -> list[str]:
    """What the step holds, part by part, and does."""
    lines = [f"a training step of {step}"]
    lines += [f"  {part:<11}  {size_text(getattr(predicted, part)):>10}  {told}" for part, told in _PARTS.items()]
    return [*lines, f"  {'work':<11}  {f'{predicted.flops / 1e9:,.1f} GFLOP':>10}  of products and convolutions"]


def budget_lines(fit: Fit) -> list[str]:
    """Which supports fit."""
    width = max(map(len, fit.peaks))
    lines = [f"in {size_text(fit.budget)}"]
    for name, peak in fit.peaks.items():
        verdict = "fits" if peak <= fit.budget else "does not fit"
        lines.append(f"  {name:<{width}}  {size_text(peak):>10}  {verdict}")
    if fit.largest_radius is None:
        return [*lines, "no radius of dilated fits"]
    end = ", and holds every weight" if fit.largest_radius == fit.reach else ""
    return [*lines, f"the largest radius of dilated that fits is {fit.largest_radius}{end}"]
