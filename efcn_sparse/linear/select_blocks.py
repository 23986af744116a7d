"""Which blocks of a dense matrix to keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.checks import check_has_numbers, checked_pair


def strongest_blocks(weight: Tensor, *, density: float, block_shape: Sequence[int]) -> BlockPattern:
    """The pattern of the ``round(density * blocks)`` blocks of ``weight`` with the largest Frobenius norms.

    Args:
        weight: ``[out_features, in_features]``.
    """
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    check_has_numbers("weight", weight)
    height, width = checked_pair("block_shape", block_shape, least=1)
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % width, 0, -weight.shape[0] % height))
    rows, cols = padded.shape[0] // height, padded.shape[1] // width
    norms = padded.view(rows, height, cols, width).double().square().sum((1, 3)).flatten()
    kept = torch.argsort(norms, descending=True, stable=True)[: round(density * rows * cols)]
    return BlockPattern.from_blocks(kept // max(cols, 1), kept % max(cols, 1), weight.shape, (height, width))
