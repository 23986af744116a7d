"""Blocks of a sparse layer leave where weights are small and come where the gradient is large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.fused.workspace import workspace_bytes
from efcn_sparse.gradients.factors import checked_factors
from efcn_sparse.growth.exchange import BlockState, GrowingLayer, exchange_blocks, growing_layer, state_of_blocks
from efcn_sparse.growth.scores import NotFiniteError, best_blocks, flat_positions, scores_at, scores_outside
from efcn_sparse.pattern import BlockPattern


@dataclass(frozen=True, eq=False)
class Regrown:
    """What :func:`regrow` has done.

    Attributes:
        grown: int64 ``[n, 2]``: block row and block column of the new blocks, best first.
        gradient_norms: fp64 ``[n]``: the Frobenius norms of their gradients.
        dropped: int64 ``[n, 2]``: the blocks that went, weakest first.
        weight_norms: fp64 ``[n]``: the Frobenius norms that they had.
        source: int64 ``[nnz_blocks]``: which old block each block of the new pattern is; -1: it is new.
    """

    grown: Tensor
    gradient_norms: Tensor
    dropped: Tensor
    weight_norms: Tensor
    source: Tensor

    @property
    def blocks(self) -> int:
        """How many blocks were exchanged."""
        return len(self.grown)


@torch.no_grad()
def regrow(
    layer: nn.Module,
    dy: Tensor,
    x: Tensor,
    *,
    blocks: int,
    optimizer: Optimizer | None = None,
    candidates: BlockPattern | None = None,
) -> Regrown:
    """Exchange up to ``blocks`` stored blocks of least norm for the blocks off the support with the largest gradients.

    This is RigL (Evci et al. 2020, arXiv 1911.11134) with blocks in place of single weights. Every block outside the
    pattern is scored by the Frobenius norm of its gradient, exactly, in tiles: the dense gradient is never held. New
    blocks are whole and start at zero; those that stay keep their values and their optimizer state. The number of
    stored blocks, and so the shape of ``values``, does not change; ``values`` remains the same parameter, at the same
    place in memory, and ``layer.pattern`` is replaced. ``values.grad`` follows, zero at new blocks.

    Blocks with a mask are never dropped, nor are those of an embedded convolution that copy kernel entries; its ties
    follow, and so does a fused optimizer of the layer. A block that goes does not come back in the same call. Blocks
    with a gradient of exactly zero are not grown, so fewer than ``blocks`` may be exchanged. Equals are taken by
    position.

    Processes that each hold the whole layer (DDP) must call it with the same factors, or their patterns drift apart.

    All that is new is computed before anything is changed (for which values and state of this one layer are held
    twice), so an error leaves the layer as it was.

    Args:
        layer: the layer to change: a :class:`SparseLinear`, or a convolution embedded with :class:`Grown`.
        dy: ``[..., out_features]``, the gradient of the layer's output; see :func:`record_factors`.
        x: ``[..., in_features]``, its input, of the dtype and leading dimensions of ``dy``.
        blocks: how many blocks to exchange at most.
        optimizer: the torch optimizer that holds the values. Without it, state that it may have for ``values`` is left
            where it was, next to blocks that it does not belong to. A :class:`FusedOptimizer` follows in any case.
        candidates: the only blocks that may be grown, a pattern without masks; all blocks when None.

    Laws: ``pattern.nnz_blocks`` stays; ``values_after[source >= 0] == values_before[source[source >= 0]]``.

    Raises:
        ValueError: a shape or device does not fit; fewer than ``blocks`` blocks are off the support or may be dropped;
            the gradient or the values are not finite; the values are sharded; or the optimizer's state cannot follow.
        TypeError: an argument is of the wrong kind.
        NotImplementedError: the blocks of the layer stay where they are: a convolution with another support.

    Example:
        >>> import torch, efcn_sparse as es
        >>> diagonal = es.BlockPattern.from_mask(torch.eye(2, dtype=torch.bool), (2, 2), shape=(4, 4))
        >>> layer = es.SparseLinear(4, 4, diagonal)
        >>> _ = layer.values.data[1].zero_()
        >>> dy, x = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        >>> es.regrow(layer, dy, x, blocks=1).grown
        tensor([[0, 1]])
        >>> layer.pattern.to_mask().int()[0]
        tensor([1, 1, 1, 1], dtype=torch.int32)
    """
    try:
        choice = choose(layer, dy, x, blocks=blocks, optimizer=optimizer, candidates=candidates)
    except NotFiniteError as error:
        raise ValueError(*error.args) from None
    return choice.carry_out()


class Choice(NamedTuple):
    """An exchange that has been chosen and checked; nothing has changed yet."""

    layer: GrowingLayer
    target: BlockPattern
    states: list[BlockState]
    result: Regrown

    @torch.no_grad()
    def carry_out(self) -> Regrown:
        """Exchange the blocks."""
        if self.result.blocks:
            exchange_blocks(self.layer, self.target, self.result.source, self.states)
        return self.result


@torch.no_grad()
def choose(
    layer: nn.Module,
    dy: Tensor,
    x: Tensor,
    *,
    blocks: int,
    optimizer: Optimizer | None = None,
    candidates: BlockPattern | None = None,
) -> Choice:
    """What :func:`regrow` would do.

    Raises:
        NotFiniteError: the gradient or the values are not finite.
        ValueError, TypeError, NotImplementedError: as :func:`regrow`.
    """
    growing = growing_layer(layer)
    linear, droppable = growing.linear, growing.movable
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    pattern, values = linear.pattern, linear.values
    a, b = checked_factors(dy, x, pattern)
    states = state_of_blocks(optimizer, values)
    stored = flat_positions(pattern)
    wanted = None if candidates is None else _off_support(candidates, pattern, stored)
    outside = math.prod(pattern.grid) - pattern.nnz_blocks if wanted is None else wanted.nnz_blocks
    _check_count(blocks, outside, int(droppable.sum()))
    for name, tensor in (("dy", a), ("x", b), ("layer.values", values)):
        if tensor.numel() and not bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all()):
            raise NotFiniteError(f"{name} must be finite, got NaN or infinity")

    precise = torch.float64 if a.dtype == torch.float64 else torch.float32
    a, b = a.to(precise), b.to(precise)
    scored = scores_outside(a, b, pattern) if wanted is None else scores_at(a, b, wanted)
    grown = best_blocks(scored, blocks, a.device)
    may_leave = droppable.nonzero().squeeze(1)
    norms = _block_norms(values.detach(), may_leave)
    weakest = torch.argsort(norms, stable=True)[: len(grown.blocks)]  # equals by position
    dropped = may_leave[weakest]

    target, source = _exchanged(pattern, stored, grown.blocks, dropped)
    result = Regrown(
        _rows_and_cols(grown.blocks, pattern), grown.squares.sqrt(),
        _rows_and_cols(stored[dropped], pattern), norms[weakest], source,
    )  # fmt: skip
    return Choice(growing, target, states, result)


def _exchanged(pattern: BlockPattern, stored: Tensor, grown: Tensor, dropped: Tensor) -> tuple[BlockPattern, Tensor]:
    """The pattern after the exchange, and which old block each of its blocks is, -1 for new ones."""
    stays = torch.ones_like(stored, dtype=torch.bool)
    stays[dropped] = False
    kept = stays.nonzero().squeeze(1)
    positions, order = torch.cat([stored[kept], grown]).sort()
    source = torch.cat([kept, torch.full_like(grown, -1)])[order]
    (rows, cols), masked = pattern.grid, pattern.mask_index.numel() > 0
    crow = torch.zeros(rows + 1, dtype=torch.int64, device=stored.device)
    crow[1:] = torch.bincount(positions // max(cols, 1), minlength=rows).cumsum(0)
    target = BlockPattern.from_bsr(
        crow, positions % max(cols, 1), pattern.shape, pattern.block_shape,
        mask_index=torch.where(source < 0, -1, pattern.mask_index[source.clamp(min=0)]) if masked else None,
        masks=pattern.masks if masked else None,
    )  # fmt: skip
    return target, source


def _off_support(candidates: BlockPattern, pattern: BlockPattern, stored: Tensor) -> BlockPattern:
    """The candidates that are not stored."""
    if not isinstance(candidates, BlockPattern):
        raise TypeError(f"candidates must be a BlockPattern, got {type(candidates).__name__}")
    mine, theirs = ((p.shape, p.block_shape) for p in (pattern, candidates))
    if mine != theirs:
        raise ValueError(
            f"candidates must be {list(mine[0])} in blocks {mine[1]}, got {list(theirs[0])} in blocks {theirs[1]}"
        )
    if candidates.masks.shape[0]:
        raise ValueError("candidates must have no masks, since new blocks are whole, got a pattern with masked blocks")
    positions = flat_positions(candidates.to(stored.device))
    free = positions[~torch.isin(positions, stored)]
    cols = max(pattern.grid[1], 1)
    return BlockPattern.from_blocks(free // cols, free % cols, pattern.shape, pattern.block_shape)


def _block_norms(values: Tensor, blocks: Tensor) -> Tensor:
    """fp64 ``[n]``: the Frobenius norms of ``values[blocks]``, a bounded number at a time."""
    step = max(1, workspace_bytes(values.device) // max(1, values[:1].nbytes))
    norms = values.new_empty(len(blocks), dtype=torch.float64)
    for part, out in zip(blocks.split(step), norms.split(step), strict=True):
        out.copy_(torch.linalg.vector_norm(values.index_select(0, part), dim=(1, 2), dtype=torch.float64))
    return norms


def _rows_and_cols(positions: Tensor, pattern: BlockPattern) -> Tensor:
    cols = max(pattern.grid[1], 1)
    return torch.stack([positions // cols, positions % cols], 1)


def _check_count(blocks: int, outside: int, droppable: int) -> None:
    if not isinstance(blocks, int) or isinstance(blocks, bool):
        raise TypeError(f"blocks must be an integer, got {type(blocks).__name__}")
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")
    if blocks > outside:
        raise ValueError(f"blocks must be at most {outside}, the candidates off the support, got {blocks}")
    if blocks > droppable:
        raise ValueError(f"blocks must be at most {droppable}, the stored blocks that may leave, got {blocks}")
