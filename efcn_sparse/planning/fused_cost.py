"""Optimizers by name, and what their updates inside the backward pass cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from efcn_sparse.embedding.blocks import covered_blocks
from efcn_sparse.embedding.plan import LayerPlan
from efcn_sparse.fused.layer_update import MOST_SLICES, WORKSPACE_BYTES

_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer; how many numbers it keeps for each weight; and how many more an update holds for a moment.

    The last is what torch's loop over CPU parameters allocates; it matters for fused updates only, for others are run.
    ``inside``: it is ``FusedOptimizer(inside=True)``, fused with neither gradient nor workspace.
    """

    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    state_numbers: int
    update_numbers: int
    inside: bool = False


OPTIMIZERS = {
    "sgd": OptimizerKind(lambda p: torch.optim.SGD(p, lr=0.1), 0, 0),
    "sgd-inside": OptimizerKind(lambda p: torch.optim.SGD(p, lr=0.1), 0, 0, inside=True),
    "momentum": OptimizerKind(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, 0),
    "adamw": OptimizerKind(lambda p: torch.optim.AdamW(p, lr=1e-3), 2, 2),
}


def checked_optimizer(name: str) -> OptimizerKind:
    """The optimizer of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    return OPTIMIZERS[name]


@dataclass(frozen=True)
class FusedCost:
    """Bytes of fused updates: the workspace that layers share, all state, and what one slice's update allocates."""

    workspace: int = 0
    state: int = 0
    update: int = 0


def fused_cost(layers: Iterable[LayerPlan], kind: OptimizerKind) -> FusedCost:
    """The cost of :class:`FusedOptimizer` on the CPU for these layers."""
    if kind.inside:
        return FusedCost()
    layers = list(layers)
    workspace = max(map(_largest_slice, layers), default=0)
    state = kind.state_numbers * sum(layer.block_bytes for layer in layers)
    return FusedCost(workspace, state, kind.update_numbers * workspace)


def _largest_slice(layer: LayerPlan) -> int:
    """Bytes of the longest run of whole block rows that is updated at a time, from a sample of the rows."""
    block_bytes = math.prod(layer.block_shape) * layer.dtype.itemsize
    most = max(WORKSPACE_BYTES["cpu"] // block_bytes, -(-layer.stored_blocks // MOST_SLICES), 1)
    rows = -(-layer.shape[0] // layer.block_shape[0])
    sampled = torch.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS), dtype=torch.float64, device="cpu").long()
    found, _ = covered_blocks(layer.geometry, layer.support, layer.block_shape, torch.unique(sampled))
    longest = int(torch.bincount(found).max()) if found.numel() else 0
    return min(max(most, longest), layer.stored_blocks) * block_bytes
