"""One row of W: the incoming weights of a unit, without forming W."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern


def incoming_weights(values: Tensor, pattern: BlockPattern, unit: int) -> Tensor:
    """Row ``unit`` of W, taken from the blocks of its block row.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        unit: from 0 to ``out_features - 1``.

    Returns:
        ``[in_features]``, zero where nothing is stored.

    Law: ``incoming_weights(values, pattern, u)`` equals ``pattern.to_dense(values)[u]``.

    Raises:
        ValueError: ``unit`` is out of range, or ``values`` does not belong to ``pattern``.

    Example:
        >>> pattern = BlockPattern.from_bsr([0, 1, 1], [1], (4, 6), (2, 3))
        >>> incoming_weights(torch.ones(1, 2, 3), pattern, 1)
        tensor([0., 0., 0., 1., 1., 1.])
    """
    pattern.check_values(values)
    if not 0 <= unit < pattern.shape[0]:
        raise ValueError(f"unit must lie in [0, {pattern.shape[0]}), got {unit}")
    block_row, row = divmod(unit, pattern.block_shape[0])
    first, last = pattern.crow_indices[block_row : block_row + 2].tolist()
    stored = values.detach()[first:last, row]
    if pattern.masks.shape[0]:
        index = pattern.mask_index[first:last].to(torch.int64)
        counts = pattern.masks.bool()[index.clamp(min=0), row] | (index < 0)[:, None]
        stored = stored.masked_fill(~counts, 0)
    tiles = values.new_zeros((pattern.grid[1], pattern.block_shape[1]))
    tiles[pattern.col_indices[first:last].to(torch.int64)] = stored
    return tiles.flatten()[: pattern.shape[1]]
