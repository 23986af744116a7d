"""A pattern cut into runs of whole block rows, so that work on its values can go through a small workspace."""

from __future__ import annotations

from typing import NamedTuple

import torch

from efcn_sparse.pattern.block_pattern import BlockPattern


class RowSlice(NamedTuple):
    """Block rows that belong together.

    Attributes:
        rows: the entries of the output that they make, ``y[:, rows]``.
        blocks: their blocks, ``values[blocks]``.
        pattern: the pattern of ``W[rows]``.
    """

    rows: slice
    blocks: slice
    pattern: BlockPattern


def row_slices(pattern: BlockPattern, most_blocks: int) -> list[RowSlice]:
    """The pattern as runs of consecutive block rows of at most ``most_blocks`` blocks each, or of one row.

    Rows without blocks at the end of a run stay with it, and a pattern without blocks has no slices.

    Law: ``values[s.blocks]`` over all slices s is ``values``, and ``s.pattern.to_mask()`` is ``to_mask()[s.rows]``.

    Example:
        >>> [s.blocks for s in row_slices(BlockPattern.dense((6, 8), (2, 4)), most_blocks=4)]
        [slice(0, 4, None), slice(4, 6, None)]
    """
    if most_blocks < 1:
        raise ValueError(f"most_blocks must be at least 1, got {most_blocks}")
    starts = pattern.crow_indices.cpu().tolist()
    slices, first = [], 0
    for row in range(1, len(starts)):
        last = row == len(starts) - 1
        if last or starts[row + 1] - starts[first] > most_blocks:
            if starts[row] > starts[first]:
                slices.append(_row_slice(pattern, first, row, starts))
            first = row
    return slices


def _row_slice(pattern: BlockPattern, first: int, last: int, starts: list[int]) -> RowSlice:
    height = pattern.block_shape[0]
    rows = slice(first * height, min(last * height, pattern.shape[0]))
    blocks = slice(starts[first], starts[last])
    crow = pattern.crow_indices[first : last + 1].to(torch.int64) - starts[first]
    part = BlockPattern.from_bsr(
        crow,
        pattern.col_indices[blocks],
        (rows.stop - rows.start, pattern.shape[1]),
        pattern.block_shape,
        mask_index=pattern.mask_index[blocks],
        masks=pattern.masks,
    )
    return RowSlice(rows, blocks, part)
