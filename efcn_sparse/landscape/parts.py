"""The tied, untied and off-local parts of a net's weights, as vectors and one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv, embedded_layers
from efcn_sparse.subspace.plan import weight_blocks
from efcn_sparse.subspace.project import project_tensor

PARTS = ("tied", "untied", "off_local")
KEPT = {"tied": ("tied",), "local": ("tied", "untied"), "off_local": ("off_local",)}


def part_of(layer: EmbeddedConv, values: Tensor, part: str) -> Tensor:
    """The orthogonal projection of ``values`` onto one part of the layer's weights.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``: weights, a gradient, or any direction; not changed.
        part: ``"tied"``: each kernel entry's mean at all its copies; ``"untied"``: what the local entries differ from
            it; ``"off_local"``: the entries outside the receptive fields.

    Law: the three parts are orthogonal and add up to ``values``.
    """
    check_part(part)
    local = _projected(layer, values, tie=False)
    if part == "off_local":
        return _in_support(layer, values) - local
    tied = _projected(layer, values, tie=True)
    return tied if part == "tied" else local - tied


def dimension_of(layer: EmbeddedConv, part: str) -> int:
    """In how many independent directions the weights of ``part`` can move: the trace of its projection."""
    check_part(part)
    counts = layer.ties.counts
    local, kernel = int(counts.sum()), int((counts > 0).sum())
    return {"tied": kernel, "untied": local - kernel, "off_local": layer.linear.pattern.nnz - local}[part]


def check_part(part: str) -> None:
    """Refuse the name of no part."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")


def _projected(layer: EmbeddedConv, values: Tensor, *, tie: bool) -> Tensor:
    copy = _in_support(layer, values)
    project_tensor(copy, weight_blocks(layer)[1], tie)
    return copy


def _in_support(layer: EmbeddedConv, values: Tensor) -> Tensor:
    """A copy of ``values``, zero at stored entries outside the support."""
    support = layer.linear.pattern.support_of_blocks()
    return values.detach().clone() if support is None else values.detach().masked_fill(~support, 0)


def layers_with_weights(model: nn.Module) -> dict[str, EmbeddedConv]:
    """The embedded convolutions of ``model``, each with weights one by one."""
    refuse_low_rank_in(model)
    return embedded_layers(model)


def refuse_low_rank_in(model: nn.Module) -> None:
    """Refuse a model that holds a layer with the support ``LowRank``."""
    for name, layer in model.named_modules():
        if isinstance(layer, EmbeddedConv):
            refuse_low_rank(repr(name), layer)


def refuse_low_rank(name: str, layer: EmbeddedConv) -> None:
    """Refuse the support ``LowRank``: its off-local part is a product, and has no weights one by one."""
    if layer.low_rank is not None:
        raise ValueError(f"{name} must have weights one by one, got {layer.support}, whose off-local part is a product")


@torch.no_grad()
def ablation(
    model: nn.Module, evaluate: Callable[[nn.Module], float | Mapping[str, float]]
) -> dict[str, dict[str, float | Mapping[str, float]]]:
    """What a net is worth with only the tied, only the local, or only the off-local part of its weights.

    Args:
        model: holds embedded convolutions. Its weights are changed in place while it is evaluated, and restored bit
            for bit, also if ``evaluate`` raises. Biases and all other layers stay as they are.
        evaluate: takes the model, gives a loss or a mapping of metrics.

    Returns:
        For each layer by name, and for ``"all"`` of them together: the evaluations with only ``"tied"``, ``"local"``
        (tied and untied) and ``"off_local"`` weights; and ``"whole"``, under ``"all"`` only.

    Memory: a copy of the weights that are being changed, and one of the largest layer's.

    Raises:
        ValueError: ``model`` holds no embedded convolution, one with the support ``LowRank``, or two that share values.

    Example:
        >>> import torch, efcn_sparse as es
        >>> x = torch.randn(4, 2, 6, 6)
        >>> net = es.embed(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3)), x, support=es.Dilated(1))
        >>> found = es.landscape.ablation(net, lambda net: float(net(x).square().mean()))
        >>> found["all"]["whole"] == found["all"]["tied"] == found["0"]["local"]
        True
    """
    layers = layers_with_weights(model)
    for name, layer in layers.items():
        if name == "all":
            raise ValueError("no layer may have the name 'all', which is that of all together")
        twins = [other for other, one in layers.items() if one.linear.values is layer.linear.values]
        if len(twins) > 1:
            raise ValueError(f"layers must have values of their own, got the same in {' and '.join(map(repr, twins))}")
    found: dict[str, dict[str, Any]] = {}
    for name, chosen in [*((name, [layer]) for name, layer in layers.items()), ("all", list(layers.values()))]:
        found[name] = {}
        for kept in KEPT:
            with _only(chosen, kept):
                found[name][kept] = evaluate(model)
    found["all"]["whole"] = evaluate(model)
    return found


@contextlib.contextmanager
def _only(layers: list[EmbeddedConv], kept: str) -> Iterator[None]:
    before: list[tuple[Tensor, Tensor]] = []
    try:
        for layer in layers:
            values = layer.linear.values.detach()
            before.append((values, values.clone()))
            if kept == "off_local":
                values.sub_(_projected(layer, values, tie=False))
            else:
                values.copy_(_projected(layer, values, tie=kept == "tied"))
        yield
    finally:
        for values, whole in before:
            values.copy_(whole)
