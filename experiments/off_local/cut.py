"""A trained eFCN whose off-local part is cut down to what a support could have held."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from experiments.off_local.curves import ordered
from experiments.off_local.layers import Layer, embedded
from experiments.off_local.low_rank import low_rank


def mask_of(scores: Tensor, layer: Layer, method: str, numbers: float) -> Tensor:
    """bool ``[out_features, in_features]``: the off-local entries that a sparse support of so many numbers holds.

    Args:
        scores: ``[out_features, in_features]``: squares by which entries or blocks are chosen, zero where it is local.
        method: ``entries``, ``blocks``, ``small blocks`` or ``dilated``.
    """
    off_local = ~layer.local
    if method == "entries":
        best = scores.flatten().sort(descending=True).indices[: int(numbers)]
        return torch.zeros(scores.numel(), dtype=torch.bool).index_fill_(0, best, True).view(scores.shape) & off_local
    if method == "small blocks":
        return mask_of(scores, layer.in_small_blocks, "blocks", numbers)
    if method == "blocks":
        sums = layer.block_sums(scores)
        order, sizes = ordered(layer, sums)
        chosen = torch.zeros(sums.numel(), dtype=torch.bool)
        chosen[order[sizes.cumsum(0) <= numbers]] = True
        return layer.spread(chosen.view(sums.shape)) & off_local
    if method == "dilated":
        sizes = torch.bincount(layer.dilated.flatten())[1:].cumsum(0)
        return (layer.dilated <= int((sizes <= numbers).sum())) & off_local
    raise ValueError(f"method must be entries, blocks, small blocks or dilated, got {method!r}")


def rank_of(layer: Layer, numbers: float) -> int:
    """The rank of ``U Vᵀ`` that so many numbers pay for."""
    return min(int(numbers // sum(layer.local.shape)), *layer.local.shape)


def kept(off_local: Tensor, layer: Layer, method: str, numbers: float) -> Tensor:
    """What is left of an off-local part in a support of so many numbers, chosen or fitted for it; zero where local.

    Law: ``1 - ‖off_local - kept‖² / ‖off_local‖²`` is the method's curve at ``numbers``.
    """
    if method == "low rank, fitted":
        (fit,) = low_rank(off_local.float(), [rank_of(layer, numbers)], layer.local)
        return fit.double().masked_fill_(layer.local, 0)
    return off_local * mask_of(off_local.square(), layer, method, numbers)


def with_off_local(model: nn.Module, parts: dict[str, Tensor], layers: dict[str, Layer]) -> nn.Module:
    """A copy of ``model`` with these off-local weights, ``[out_features, in_features]`` for each layer."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in embedded(twin).items():
            pattern, values = module.linear.pattern, module.linear.values
            dense = pattern.to_dense(values)
            values.copy_(pattern.gather(torch.where(layers[name].local, dense, parts[name].to(dense.dtype))))
    return twin
