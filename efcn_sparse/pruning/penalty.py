"""A penalty that makes whole blocks small."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.linear.select_blocks import sums_of_blocks


def group_lasso(weight: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """The sum over blocks of √(entries of a block) · ‖block‖, differentiable, zero gradient at blocks of zeros.

    Added to the loss it drives whole blocks of weights to zero before they are pruned.

    Args:
        weight: ``[out_features, in_features]``.

    Source: Yuan & Lin, Model selection and estimation in regression with grouped variables, 2006; groups are blocks.

    Example:
        >>> weight = torch.zeros(4, 4, requires_grad=True)
        >>> weight.data[:2, :2] = 3.0
        >>> penalty = group_lasso(weight, (2, 2))
        >>> penalty.backward()
        >>> penalty.item(), weight.grad[0].tolist()
        (12.0, [1.0, 1.0, 0.0, 0.0])
    """
    squares = sums_of_blocks(weight.square(), block_shape)
    norms = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
    heights, widths = (
        (side - torch.arange(0, side, block, dtype=torch.float64, device=weight.device)).clamp(max=block)
        for side, block in zip(weight.shape, block_shape, strict=True)
    )  # less at the edge
    return (norms * torch.outer(heights, widths).sqrt().to(norms.dtype)).sum()
