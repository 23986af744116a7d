"""Share of a matrix's squared off-local norm that a support holds, against the numbers that it stores for it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.off_local.layers import Layer
from experiments.off_local.low_rank import low_rank

METHODS = {
    "entries": "single entries",
    "blocks": "blocks",
    "small blocks": "blocks of a quarter of the sides",
    "low rank": "low rank, SVD",
    "low rank, fitted": "low rank, fitted",
    "dilated": "dilation",
}


@dataclass(frozen=True)
class Curve:
    """Numbers stored, ascending, and the share that they hold. Between two points a support holds what the lower does.

    Example:
        >>> Curve((10, 20), (0.5, 0.75)).at(15)
        0.5
    """

    stored: tuple[int, ...]
    share: tuple[float, ...]

    def at(self, numbers: float) -> float:
        """The share at a budget."""
        below = bisect_right(self.stored, numbers)
        return self.share[below - 1] if below else 0.0


def curves_of(off_local: Tensor, layer: Layer, budgets: Sequence[float]) -> dict[str, Curve]:
    """One curve for each of :data:`METHODS`.

    Args:
        off_local: fp64 ``[out_features, in_features]``, zero where it is local.
        budgets: in numbers stored: where to fit low rank, which is dear.
    """
    return {
        "entries": entries(off_local, layer),
        "blocks": blocks(off_local, layer),
        "small blocks": blocks(off_local, layer.in_small_blocks),
        "low rank": singular(off_local),
        "low rank, fitted": fitted(off_local, layer, budgets),
        "dilated": dilation(off_local, layer),
    }


def entries(off_local: Tensor, layer: Layer) -> Curve:
    """The largest entries: no sparse support of as many numbers holds more. Their places are not counted."""
    squares = off_local.square().flatten().sort(descending=True).values[: layer.off_local_weights]
    return _curve(range(1, len(squares) + 1), squares.cumsum(0))


def blocks(off_local: Tensor, layer: Layer) -> Curve:
    """The blocks of largest norm; what is off-local in the blocks that the local support touches comes first."""
    return by_blocks(off_local, layer, layer.block_sums(off_local.square()))


def by_blocks(off_local: Tensor, layer: Layer, scores: Tensor) -> Curve:
    """The blocks of largest score, ``[block rows, block columns]``."""
    order, numbers = ordered(layer, scores)
    held = layer.block_sums(off_local.square()).flatten()[order]
    return _curve(numbers.cumsum(0).tolist(), held.cumsum(0))


def ordered(layer: Layer, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of all blocks with off-local entries, in the order of storing, and how many entries each adds."""
    numbers = layer.block_sums(~layer.local).flatten().long()
    touched = layer.block_sums(layer.local).flatten() > 0
    order = torch.argsort(scores.flatten().masked_fill(touched, math.inf), descending=True, stable=True)
    order = order[numbers[order] > 0]
    return order, numbers[order]


def singular(off_local: Tensor) -> Curve:
    """The best matrices of rank 1, 2, …: an SVD of the off-local part with zeros where it is local."""
    squares = torch.linalg.svdvals(off_local.float()).double().square().cumsum(0)
    sides = sum(off_local.shape)
    return _curve([rank * sides for rank in range(1, len(squares) + 1)], squares)


def fitted(off_local: Tensor, layer: Layer, budgets: Sequence[float]) -> Curve:
    """Low rank fitted to the off-local entries alone, at the ranks that ``budgets`` pay for."""
    sides = sum(off_local.shape)
    ranks = sorted({rank for rank in (int(budget // sides) for budget in budgets) if 0 < rank < min(off_local.shape)})
    fits = low_rank(off_local.float(), ranks, layer.local)
    missed = [(off_local - fit)[~layer.local].square().sum() for fit in fits]
    total = off_local.square().sum()
    return _curve([rank * sides for rank in ranks], [total - rest for rest in missed], float(total))


def dilation(off_local: Tensor, layer: Layer) -> Curve:
    """Receptive fields that grow by 1, 2, … pixels on every side."""
    radii = range(1, int(layer.dilated.max()) + 1)
    rings = [layer.dilated == radius for radius in radii]
    numbers = torch.tensor([int(ring.sum()) for ring in rings]).cumsum(0)
    held = torch.stack([off_local[ring].square().sum() for ring in rings]).cumsum(0)
    return _curve(numbers.tolist(), held)


def _curve(stored: Iterable[int], squares: Tensor | Sequence[Tensor], total: float | None = None) -> Curve:
    held = [float(square) for square in squares]
    total = (held[-1] if held else 0.0) if total is None else total
    return Curve(tuple(stored), tuple(square / total if total else 0.0 for square in held))
