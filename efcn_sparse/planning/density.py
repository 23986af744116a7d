"""Where a planned layer stores blocks, as an image of a few hundred pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efcn_sparse.default_device import on_cpu
from efcn_sparse.embedding.blocks import covered_blocks
from efcn_sparse.embedding.plan import LayerPlan
from efcn_sparse.pattern.structure import grid_of

_MOST_BLOCKS = 1 << 23  # that are looked at in one layer
_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class DensityMap:
    """The share of blocks that are stored, cell by cell of the block grid.

    Attributes:
        share: fp64 ``[rows, columns]``, from 0 to 1: of the blocks in each cell, how many are stored.
        cell: how many block rows and block columns a cell has; those at the lower and right edge may have fewer.
        sampled: whether only some block rows of each cell were looked at.
    """

    share: Tensor
    cell: tuple[int, int]
    sampled: bool


def density_map(layer: LayerPlan, pixels: int = 256, most_blocks: int = _MOST_BLOCKS) -> DensityMap:
    """The density of a layer's pattern, without building it: memory does not grow with the number of blocks.

    Args:
        layer: a layer of a plan.
        pixels: the most cells a side.
        most_blocks: about how many blocks are looked at; beyond that, block rows are sampled, at least one for each
            row of cells. Blocks that :class:`Grown` spreads are counted as spread evenly.

    Raises:
        ValueError: ``pixels`` or ``most_blocks`` is below 1.

    Example:
        >>> from efcn_sparse.embedding import plan
        >>> layer = plan(torch.nn.Conv1d(64, 64, 3, padding=1), torch.empty(1, 64, 4)).layers[0]
        >>> layer.block_shape, density_map(layer, pixels=2).share
        ((64, 64), tensor([[1.0000, 0.2500], [0.2500, 1.0000]], dtype=torch.float64))
    """
    for name, number in {"pixels": pixels, "most_blocks": most_blocks}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    grid = grid_of(layer.shape, layer.block_shape)
    cell = (-(-grid[0] // pixels), -(-grid[1] // pixels))
    shape = (-(-grid[0] // cell[0]), -(-grid[1] // cell[1]))
    if layer.stored_blocks == grid[0] * grid[1]:
        return DensityMap(torch.ones(shape, dtype=torch.float64, device="cpu"), cell, False)
    with on_cpu():
        per_row = -(-layer.stored_blocks // grid[0])
        rows = _chosen_rows(grid[0], cell[0], max(1, most_blocks // (shape[0] * per_row)))
        counts = torch.zeros(shape[0] * shape[1], dtype=torch.int64)
        for part in rows.split(max(1, _AT_A_TIME // per_row)):
            block_row, block_col = covered_blocks(layer.geometry, layer.support, layer.block_shape, part)
            counts += torch.bincount(block_row // cell[0] * shape[1] + block_col // cell[1], minlength=counts.numel())
        seen = torch.bincount(rows // cell[0], minlength=shape[0])
        width = torch.bincount(torch.arange(grid[1]) // cell[1], minlength=shape[1])
        share = counts.view(shape).double() / (seen[:, None] * width)
        touched = float((share * seen[:, None] * width).sum()) / rows.numel() * grid[0]
        spread = (layer.stored_blocks - touched) / (grid[0] * grid[1] - touched)
        if layer.support.touching is not layer.support:
            share = share + (1 - share) * max(0.0, spread)
    return DensityMap(share, cell, rows.numel() < grid[0])


def _chosen_rows(total: int, cell: int, most: int) -> Tensor:
    """Of each run of ``cell`` block rows, up to ``most``, evenly spaced."""
    if most >= cell:
        return torch.arange(total)
    offsets = (torch.arange(most) * cell + cell // 2) // most
    rows = (torch.arange(0, total, cell)[:, None] + offsets).flatten()
    return torch.unique(rows.clamp(max=total - 1))
