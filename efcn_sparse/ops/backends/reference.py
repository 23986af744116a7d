"""Plain torch, on any device: the oracle of the other backends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from efcn_sparse.pattern import Structure

NAME = "reference"
_CHUNK, _CHUNK_ON_CPU = 1 << 24, 1 << 20  # elements that are gathered at a time; on CPUs they stay in the caches
_LOW_PRECISION = (torch.bfloat16, torch.float16)


def why_not(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """The reason why this backend cannot run there; it always can."""
    return None


def spmm(
    y: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    structure: Structure,
    shape: Sequence[int],
    transpose: bool,
    alpha: float,
    beta: float,
) -> None:
    """y = alpha · (x Wᵀ + bias) + beta · y; with ``transpose``, x W."""
    values = _in_support(values, structure, shape)
    blocks = values.transpose(1, 2) if transpose else values
    walk = structure.walk(transpose)
    height, width = blocks.shape[1:]
    compute = torch.float32 if x.dtype in _LOW_PRECISION else x.dtype
    tiles, lines = _tiles(x.to(compute), width), walk.lines()
    total = tiles.new_zeros((walk.starts.numel() - 1, x.shape[0], height))
    for chunk in _chunks(x.device, lines.numel(), x.shape[0] * (height + width)):
        weights = blocks[walk.blocks[chunk].to(torch.int64)].mT.to(compute)
        products = tiles[walk.neighbors[chunk].to(torch.int64)] @ weights
        if total.device.type == "cpu":  # each of the two sums in any order where the other does not
            total.index_add_(0, lines[chunk], products)
        else:
            total.index_put_((lines[chunk],), products, accumulate=True)
    result = total.transpose(0, 1).reshape(x.shape[0], -1)[:, : y.shape[1]]
    if bias is not None:
        result = result + bias.to(compute)
    _accumulate(y, result, alpha, beta)


def sddmm(
    out: Tensor, a: Tensor, b: Tensor, structure: Structure, shape: Sequence[int], alpha: float, beta: float
) -> None:
    """out = alpha · (aᵀ b at the stored blocks) + beta · out, zero outside the support."""
    compute = torch.float32 if a.dtype in _LOW_PRECISION else a.dtype
    left, right = _tiles(a.to(compute), out.shape[1]), _tiles(b.to(compute), out.shape[2])
    rows = structure.rows_of_blocks().to(torch.int64)
    for chunk in _chunks(a.device, out.shape[0], a.shape[0] * (out.shape[1] + out.shape[2])):
        product = left[rows[chunk]].mT @ right[structure.col_indices[chunk].to(torch.int64)]
        _accumulate(out[chunk], product, alpha, beta)
    out.copy_(_in_support(out, structure, shape))


def _chunks(device: torch.device, blocks: int, elements: int) -> Iterator[slice]:
    """Slices of ``blocks``, each of which gathers so many elements."""
    most = _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK
    some = max(1, most // max(1, elements))
    return (slice(first, first + some) for first in range(0, blocks, some))


def _accumulate(out: Tensor, result: Tensor, alpha: float, beta: float) -> None:
    scaled = result if alpha == 1.0 else alpha * result
    out.copy_(scaled if beta == 0.0 else scaled + beta * out.to(result.dtype))


def _tiles(x: Tensor, width: int) -> Tensor:
    """``[N, features]`` as ``[blocks, N, width]``, padded with zeros."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % width))
    return padded.view(x.shape[0], padded.shape[1] // width, width).transpose(0, 1)


def _in_support(values: Tensor, structure: Structure, shape: Sequence[int]) -> Tensor:
    """``values`` with zeros outside the support: masked entries, and entries past the edge of the matrix."""
    support = structure.support(shape, values.shape[1:])
    return values if support is None else values.masked_fill(~support, 0)
