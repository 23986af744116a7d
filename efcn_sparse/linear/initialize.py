"""Initial values by the fan-in of what is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern


def fan_in_of_stored(pattern: BlockPattern) -> Tensor:
    """int64 ``[out_features]``: how many entries of each row of W are in the support."""
    support = pattern.support_of_blocks()
    rows = pattern.rows_of_blocks().to(torch.int64)
    if support is None:
        per_block = torch.full((rows.numel(), pattern.block_shape[0]), pattern.block_shape[1], device=rows.device)
    else:
        per_block = support.sum(2)
    total = torch.zeros((pattern.grid[0], pattern.block_shape[0]), dtype=torch.int64, device=rows.device)
    return total.index_add_(0, rows, per_block.to(torch.int64)).flatten()[: pattern.shape[0]]


def by_blocks(lines: Tensor, side: int) -> Tensor:
    """``[blocks, side]``: what there is for each row, or each column, of W, block by block; zero past the edge."""
    return torch.nn.functional.pad(lines, (0, -lines.numel() % side)).view(-1, side)


@torch.no_grad()
def uniform_(values: Tensor, pattern: BlockPattern, fan_in: Tensor) -> None:
    """Fill ``values`` from U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of each row (LeCun et al. 1998), zero off the support."""
    bound = by_blocks(fan_in, pattern.block_shape[0]).clamp(min=1).to(values.dtype).rsqrt()
    values.uniform_(-1.0, 1.0).mul_(bound[pattern.rows_of_blocks().to(torch.int64)].unsqueeze(-1))
    support = pattern.support_of_blocks()
    if support is not None:
        values.masked_fill_(~support, 0)
