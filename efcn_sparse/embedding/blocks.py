"""The block shape of a layer, chosen by what it stores and how well its blocks multiply."""

from __future__ import annotations

import itertools
import math

import torch

from efcn_sparse.embedding.cover import covered_blocks
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.support import Support

# Share of the full rate at which a kernel runs whose narrower side has this many entries; linear in log2 between.
_EFFICIENCY = {1: 0.05, 2: 0.1, 4: 0.2, 8: 0.35, 16: 0.6, 32: 0.85, 64: 1.0}
_PER_BLOCK, _PER_BLOCK_ROW = 64, 1.0  # cost of one more block, and of each of its rows, in multiplications
_MEMORY = 1.0  # cost of holding and updating one weight, in multiplications of it at the full rate
_LARGEST = 128
_SAMPLED_ROWS = 48


def choose_block_shape(geometry: ConvGeometry, support: Support) -> tuple[int, int]:
    """The cheapest of the block shapes that fit the layer's channels.

    A row of consecutive blocks is multiplied in one go, so narrow blocks that cover the receptive field exactly beat
    wide ones that waste entries.

    Example:
        >>> from efcn_sparse.embedding.support import Local
        >>> rgb = ConvGeometry(3, 64, 1, (32, 32), (4, 4), (2, 2), ((2, 2), (2, 2)), (1, 1))
        >>> choose_block_shape(rgb, Local())
        (64, 6)
    """
    groups = geometry.groups if support.within_groups else 1
    heights = _sides(geometry.out_channels, groups, geometry.out_features)
    widths = _sides(geometry.in_channels, groups, geometry.in_features)
    candidates = [(height, width) for height in heights for width in widths]
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda shape: (_cost(geometry, support, shape), -shape[0] * shape[1], shape))


def _sides(channels: int, groups: int, features: int) -> list[int]:
    """Sides that divide a pixel's channels, or span whole pixels."""
    per_group = channels // groups
    if groups == 1 and channels % 64 == 0:
        return [_LARGEST if channels % _LARGEST == 0 and channels > _LARGEST else 64]
    within = [side for side in range(1, min(channels, _LARGEST) + 1) if channels % side == 0]
    if groups == 1:
        wide = [side for side in within if side >= min(per_group, 16)]
        if not wide and channels <= 4 * _LARGEST:
            wide = [channels]
        within = wide or [64]
    pixels = features // channels
    across = [channels * n for n in (2, 3, 4, 6, 8, 12, 16, 32, 64) if n <= pixels and channels * n <= _LARGEST]
    return within + across


def _cost(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> float:
    """Cost of one pass over the layer, in multiplications at the full rate, from a sample of its block rows."""
    total = -(-geometry.out_features // block_shape[0])
    samples = 1 if support.stores_all else min(total, _SAMPLED_ROWS)
    sampled = torch.linspace(0, total - 1, samples, dtype=torch.float64, device="cpu").long()
    rows, cols = covered_blocks(geometry, support, block_shape, sampled)
    blocks = max(1, rows.numel())
    runs = 1 + int(((rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1] + 1)).sum())
    narrower = min(block_shape[0], blocks / runs * block_shape[1])
    weights = block_shape[0] * block_shape[1] * (1 / _efficiency(narrower) + _MEMORY)
    return blocks * (weights + _PER_BLOCK + _PER_BLOCK_ROW * block_shape[0]) * total / sampled.numel()


def _efficiency(side: float) -> float:
    sides = list(_EFFICIENCY)
    for low, high in itertools.pairwise(sides):
        if side < high:
            share = math.log2(side / low)
            return _EFFICIENCY[low] * (1 - share) + _EFFICIENCY[high] * share
    return _EFFICIENCY[sides[-1]]
