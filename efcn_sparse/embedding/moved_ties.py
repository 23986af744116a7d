"""The ties of an embedded convolution whose off-local blocks have moved."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.embedding.ties import OFF_LOCAL, OUTSIDE, Ties
from efcn_sparse.pattern import BlockPattern


def off_local_blocks(ties: Ties) -> Tensor:
    """bool ``[nnz_blocks]``: the stored blocks without a single local entry."""
    return (ties.maps < 0).flatten(1).all(1)[ties.class_of_block.to(torch.int64)]


def moved_ties(ties: Ties, pattern: BlockPattern, source: Tensor) -> Ties:
    """The ties of the blocks of ``pattern``, of which those that are new are wholly off-local.

    Args:
        ties: of the blocks as they were.
        source: int64 ``[nnz_blocks]``: which old block each block is; -1: it is new.

    Returns:
        On the device of ``ties``.
    """
    device = ties.maps.device
    source, old = source.cpu(), ties.to("cpu")
    (grid_rows, grid_cols), (height, width) = pattern.grid, pattern.block_shape
    new = (source < 0).nonzero().squeeze(1)
    last_row = pattern.rows_of_blocks().cpu()[new] == grid_rows - 1
    last_col = pattern.col_indices.cpu()[new] == grid_cols - 1
    rest = (pattern.shape[0] - (grid_rows - 1) * height, pattern.shape[1] - (grid_cols - 1) * width)

    classes = old.class_of_block.to(torch.int64)[source.clamp(min=0)] if len(old.class_of_block) else source.clone()
    maps = old.maps
    for at_bottom in (False, True):
        for at_right in (False, True):
            blocks = new[(last_row == at_bottom) & (last_col == at_right)]
            if blocks.numel():
                entries = torch.full((1, height, width), OFF_LOCAL, dtype=torch.int32)
                entries[:, rest[0] if at_bottom else height :] = OUTSIDE
                entries[:, :, rest[1] if at_right else width :] = OUTSIDE
                known = (maps == entries).flatten(1).all(1).nonzero()
                classes[blocks] = int(known[0]) if known.numel() else len(maps)
                maps = maps if known.numel() else torch.cat([maps, entries])
    return Ties.of_classes(ties.kernel_shape, classes, maps).to(device)
