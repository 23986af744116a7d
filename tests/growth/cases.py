"""Layers and gradients to test growth on, and the dense truth."""

from __future__ import annotations

import torch
from torch import Tensor

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import PATTERNS, pattern

NAMES = tuple(PATTERNS)


def factors(p: BlockPattern, batch: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn((batch, p.shape[0]), generator=generator, dtype=torch.float64)
    x = torch.randn((batch, p.shape[1]), generator=generator, dtype=torch.float64)
    return dy.to(dtype), x.to(dtype)


def dense_gradient(dy: Tensor, x: Tensor) -> Tensor:
    return dy.double().T @ x.double()


def masked_and_whole() -> BlockPattern:
    """Two masked blocks, nine whole ones, a ragged edge, and room for nine more."""
    mask = torch.zeros((30, 37), dtype=torch.bool)
    mask[:, :16] = True
    mask[:8, 8:16].tril_()
    mask[8:16, :8] = False
    mask[10, 5] = True
    mask[24:, 32:] = True
    mask[8:16, 24:32] = True
    mask[24:, 24:32] = True
    return BlockPattern.from_mask(mask, (8, 8))


def growable(name: str) -> BlockPattern:
    return masked_and_whole() if name == "masked-and-whole" else pattern(name)


def support(p: BlockPattern) -> Tensor:
    """bool ``[out_features, in_features]``."""
    return oracle.dense(torch.ones(p.values_shape, dtype=torch.float64), p).bool()


def block_norms(matrix: Tensor, block_shape: tuple[int, int]) -> Tensor:
    """fp64 ``[block rows, block columns]``, one block at a time."""
    height, width = block_shape
    rows, cols = -(-matrix.shape[0] // height), -(-matrix.shape[1] // width)
    norms = torch.zeros(rows, cols, dtype=torch.float64)
    for r in range(rows):
        for c in range(cols):
            norms[r, c] = matrix[r * height : (r + 1) * height, c * width : (c + 1) * width].double().norm()
    return norms


def stored_blocks(p: BlockPattern) -> set[tuple[int, int]]:
    crow, col = p.crow_indices.tolist(), p.col_indices.tolist()
    return {(row, col[k]) for row in range(p.grid[0]) for k in range(crow[row], crow[row + 1])}


def layer_of(p: BlockPattern, seed: int = 0, dtype: torch.dtype = torch.float32) -> es.SparseLinear:
    torch.manual_seed(seed)
    return es.SparseLinear(p.shape[1], p.shape[0], p, dtype=dtype)


__all__ = [
    "NAMES",
    "block_norms",
    "dense_gradient",
    "factors",
    "growable",
    "layer_of",
    "masked_and_whole",
    "pattern",
    "stored_blocks",
    "support",
]
