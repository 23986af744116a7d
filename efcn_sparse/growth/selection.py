"""The best of a stream of blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from efcn_sparse.growth.scores import Scored

_LEAST_PENDING = 1 << 16


def best_blocks(scored: Iterable[Scored], most: int, device: torch.device) -> Scored:
    """The ``most`` blocks with the largest scores, best first, equals by position; those that score zero are left out.

    Holds ``most`` blocks and a few more, however many come.

    Raises:
        ValueError: a score is infinite or NaN.
    """
    best = Scored(torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, dtype=torch.float64, device=device))
    pending: list[Scored] = []
    waiting = 0
    for part in scored:
        if not bool(part.squares.isfinite().all()):
            raise ValueError("dy and x must have a product that is finite, got infinity or NaN")
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
