"""The part of a pattern whose blocks one process holds."""

from __future__ import annotations

import torch

from efcn_sparse.pattern import BlockPattern


def run_of_blocks(pattern: BlockPattern, first: int, last: int) -> BlockPattern:
    """The pattern of the blocks ``values[first:last]``, in the same matrix; all other block rows are empty.

    Law: W is the sum of the W of the runs that ``values`` is cut into.

    Example:
        >>> run_of_blocks(BlockPattern.dense((4, 4), (2, 2)), 1, 3).to_mask().int()
        tensor([[0, 0, 1, 1],
                [0, 0, 1, 1],
                [1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """
    masked = pattern.mask_index.numel() > 0
    return BlockPattern.from_bsr(
        pattern.crow_indices.to(torch.int64).clamp(first, last) - first,
        pattern.col_indices[first:last],
        pattern.shape,
        pattern.block_shape,
        mask_index=pattern.mask_index[first:last] if masked else None,
        masks=pattern.masks if masked else None,
    )
