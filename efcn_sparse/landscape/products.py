"""Inner products of the weights of two layers on different supports, and blocks that both can be written in."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.ties import mean_kernel
from efcn_sparse.landscape.parts import refuse_low_rank
from efcn_sparse.linear import SparseLinear
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.structure import grid_of


def squares_and_product(a: nn.Module, b: nn.Module) -> tuple[float, float, float]:
    """``(⟨W_a, W_a⟩, ⟨W_a, W_b⟩, ⟨W_b, W_b⟩)`` of two linear maps of one shape, summed in fp64.

    A convolution counts as the matrix that embedding it gives.
    """
    if not isinstance(a, (EmbeddedConv, SparseLinear)):
        bb, ab, aa = squares_and_product(b, a)
        return aa, ab, bb
    values, pattern = weights_of(a)
    aa = _square(values)
    if isinstance(b, (EmbeddedConv, SparseLinear)):
        others, other_pattern = weights_of(b)
        return aa, _product(values, pattern, others, other_pattern), _square(others)
    if isinstance(b, nn.Linear):
        return aa, dot(values, pattern.gather(b.weight.detach())), _square(b.weight.detach())
    assert isinstance(a, EmbeddedConv)
    assert isinstance(b, _ConvNd)
    kernel = b.weight.detach().double()
    counts = a.ties.counts.view(a.ties.kernel_shape)
    mean = mean_kernel(values.double(), a.ties, None)
    return aa, float((counts * mean * kernel).sum()), float((counts * kernel.square()).sum())


def weights_of(layer: EmbeddedConv | SparseLinear) -> tuple[Tensor, BlockPattern]:
    """The stored blocks of a layer, zero outside the support, and their pattern."""
    if isinstance(layer, EmbeddedConv):
        refuse_low_rank("a layer", layer)
        layer = layer.linear
    return layer.pattern.masked(layer.values.detach()), layer.pattern


def in_smaller_blocks(values: Tensor, pattern: BlockPattern, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same weights in blocks whose sides divide those of ``pattern``.

    Returns:
        ``[n, *block_shape]``, and int64 ``[n]``: where each block lies, row by row of the grid of smaller blocks.
        Blocks past the edge of the matrix are left out.
    """
    (rows, cols), (height, width) = pattern.block_shape, block_shape
    down, across = rows // height, cols // width
    grid = grid_of(pattern.shape, block_shape)
    blocks = values.view(-1, down, height, across, width).transpose(2, 3).reshape(-1, height, width)
    device = values.device
    row = pattern.rows_of_blocks().long()[:, None, None] * down + torch.arange(down, device=device)[:, None]
    col = pattern.col_indices.long()[:, None, None] * across + torch.arange(across, device=device)
    row, col = (side.expand(-1, down, across).reshape(-1) for side in (row, col))
    inside = (row < grid[0]) & (col < grid[1])
    where = row * grid[1] + col
    return (blocks, where) if bool(inside.all()) else (blocks[inside], where[inside])


def common_blocks(a: BlockPattern, b: BlockPattern) -> tuple[int, int]:
    """The largest block shape in which both can be written: the greatest common divisors of their sides."""
    return math.gcd(a.block_shape[0], b.block_shape[0]), math.gcd(a.block_shape[1], b.block_shape[1])


def _product(values: Tensor, pattern: BlockPattern, others: Tensor, other_pattern: BlockPattern) -> float:
    if pattern == other_pattern:
        return dot(values, others)
    shape = common_blocks(pattern, other_pattern)
    (left, at), (right, there) = (
        in_smaller_blocks(values, pattern, shape),
        in_smaller_blocks(others, other_pattern, shape),
    )
    order = there.argsort()
    place = torch.searchsorted(there[order], at).clamp(max=max(len(there) - 1, 0))
    if not len(there):
        return 0.0
    both = there[order][place] == at
    return dot(left[both], right[order[place[both]]])


def _square(values: Tensor) -> float:
    return dot(values, values)


def dot(a: Tensor, b: Tensor) -> float:
    """In fp64, without an fp64 copy of either."""
    if a.dtype == torch.float64:
        return float((a * b).sum())
    pieces = zip(a.reshape(-1).split(1 << 22), b.reshape(-1).split(1 << 22), strict=True)
    return float(sum((x.double() * y.double()).sum() for x, y in pieces))
