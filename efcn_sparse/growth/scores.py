"""The blocks off a support with the largest gradients: their norms, tile by tile of the block grid, and the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from efcn_sparse.fused.workspace import workspace_bytes
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.slices import row_slices


class NotFiniteError(ValueError):
    """A gradient, or what it is made of, holds infinity or NaN."""


class Scored(NamedTuple):
    """Some blocks and their scores.

    Attributes:
        blocks: int64 ``[n]``: block row · number of block columns + block column.
        squares: fp64 ``[n]``: the squared Frobenius norms of their gradients.
    """

    blocks: Tensor
    squares: Tensor


def flat_positions(pattern: BlockPattern) -> Tensor:
    """int64 ``[nnz_blocks]``: block row · number of block columns + block column, ascending."""
    return pattern.rows_of_blocks().to(torch.int64) * pattern.grid[1] + pattern.col_indices


def scores_outside(a: Tensor, b: Tensor, pattern: BlockPattern) -> Iterator[Scored]:
    """The scores of all blocks of the grid that ``pattern`` does not store; every block comes once.

    A block's square is ‖a_rᵀ b_c‖² = ⟨a_r a_rᵀ, b_c b_cᵀ⟩ (law 7 for one block), so a tile of scores is one product of
    flattened Gram matrices. Where the batch is too large for that to be cheaper, it is a tile of aᵀ b.

    Args:
        a, b: ``[N, out_features]`` and ``[N, in_features]``, fp32 or fp64.
    """
    tile = _gram_tile if _grams_are_cheaper(a, pattern) else _product_tile
    tile_rows, tile_cols = _gram_sides(a, pattern) if tile is _gram_tile else _product_sides(a, pattern)
    rows, cols = pattern.grid
    starts = pattern.crow_indices.cpu().tolist()
    for row in range(0, rows, tile_rows):
        last = min(row + tile_rows, rows)
        free = torch.ones((last - row, cols), dtype=torch.bool, device=a.device)
        counts = pattern.crow_indices[row : last + 1].diff()
        stored_rows = torch.repeat_interleave(torch.arange(last - row, device=a.device), counts)
        free[stored_rows, pattern.col_indices[starts[row] : starts[last]].to(torch.int64)] = False
        left = _blocks(a, row, last, pattern.block_shape[0])
        for col in range(0, cols, tile_cols):
            end = min(col + tile_cols, cols)
            at_row, at_col = free[:, col:end].nonzero(as_tuple=True)
            if at_row.numel():
                squares = tile(left, _blocks(b, col, end, pattern.block_shape[1]))
                yield Scored((at_row + row) * cols + at_col + col, squares[at_row, at_col])


def scores_at(a: Tensor, b: Tensor, wanted: BlockPattern) -> Iterator[Scored]:
    """The scores of the blocks of ``wanted``, a run of block rows at a time."""
    block_bytes = a.element_size() * math.prod(wanted.block_shape)
    for part in row_slices(wanted, max(1, workspace_bytes(a.device) // (2 * block_bytes))):
        gradient = sddmm(a[:, part.rows], b, part.pattern)
        offset = part.rows.start // wanted.block_shape[0] * wanted.grid[1]
        yield Scored(flat_positions(part.pattern) + offset, gradient.square_().sum((1, 2), dtype=torch.float64))


def _blocks(factor: Tensor, first: int, last: int, side: int) -> Tensor:
    """``[N, blocks, side]``: the features of blocks ``first`` to ``last``, zero past the edge."""
    part = factor[:, first * side : last * side]
    return pad(part, (0, (last - first) * side - part.shape[1])).view(factor.shape[0], last - first, side)


def _gram_tile(left: Tensor, right: Tensor) -> Tensor:
    """fp64 ``[rows, cols]``: in fp64, since the terms of the inner product may cancel."""
    return (_grams(left) @ _grams(right).T).clamp_(min=0)  # NaN stays NaN


def _grams(factor: Tensor) -> Tensor:
    """fp64 ``[blocks, N²]``."""
    blocks = factor.double().transpose(0, 1)
    return torch.bmm(blocks, blocks.transpose(1, 2)).flatten(1)


def _product_tile(left: Tensor, right: Tensor) -> Tensor:
    """fp64 ``[rows, cols]``."""
    with torch.autocast(left.device.type, enabled=False):
        gradient = left.flatten(1).T @ right.flatten(1)
    tiles = gradient.view(*left.shape[1:], *right.shape[1:])
    return tiles.square_().sum((1, 3), dtype=torch.float64)


_BYTES_PER_SCORE = 64  # a score in fp64, its position, and what selecting them takes


def _gram_sides(a: Tensor, pattern: BlockPattern) -> tuple[int, int]:
    workspace = workspace_bytes(a.device)
    side = min(workspace // (2 * 8 * max(1, a.shape[0]) ** 2), math.isqrt(workspace // _BYTES_PER_SCORE))
    side = max(1, side)
    return min(side, max(1, pattern.grid[0])), min(side, max(1, pattern.grid[1]))


def _product_sides(a: Tensor, pattern: BlockPattern) -> tuple[int, int]:
    (height, width), (rows, cols) = pattern.block_shape, pattern.grid
    entries = max(1, workspace_bytes(a.device) // (2 * a.element_size()))
    tile_rows = min(max(1, rows), max(1, math.isqrt(entries) // height))
    most = min(entries // (height * width), workspace_bytes(a.device) // _BYTES_PER_SCORE)
    tile_cols = min(max(1, cols), max(1, most // tile_rows))
    return tile_rows, tile_cols


def _grams_are_cheaper(a: Tensor, pattern: BlockPattern) -> bool:
    """Multiplications per block: N² in fp64, and the columns' Grams again for each tile of rows; or N per entry."""
    batch, (height, width) = a.shape[0], pattern.block_shape
    fp64 = 1 if a.dtype == torch.float64 else 2
    return fp64 * batch * (1 + width / _gram_sides(a, pattern)[0]) < height * width


# -- the best of a stream of blocks ----------------------------------------------------------------------------------

_LEAST_PENDING = 1 << 16


def best_blocks(scored: Iterable[Scored], most: int, device: torch.device) -> Scored:
    """The ``most`` blocks with the largest scores, best first, equals by position; those that score zero are left out.

    Holds ``most`` blocks and a few more, however many come.

    Raises:
        NotFiniteError: a score is infinite or NaN.
    """
    best = Scored(torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.float64, device=device))
    pending: list[Scored] = []
    waiting = 0
    for part in scored:
        if not bool(part.squares.isfinite().all()):
            raise NotFiniteError("dy and x must have a product that is finite, got infinity or NaN")
        kept = part.squares > 0
        if len(best.blocks) == most:
            kept &= part.squares >= best.squares[-1]  # equals may have an earlier position
        pending.append(Scored(part.blocks[kept], part.squares[kept]))
        waiting += len(pending[-1].blocks)
        if waiting > max(most, _LEAST_PENDING):
            best, pending, waiting = _merged([best, *pending], most), [], 0
    return _merged([best, *pending], most)


def _merged(parts: list[Scored], most: int) -> Scored:
    blocks, squares = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    order = torch.argsort(blocks)
    order = order[torch.argsort(squares[order], descending=True, stable=True)][:most]
    return Scored(blocks[order], squares[order])
