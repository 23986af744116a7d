"""Blocks drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.pattern.checks import index_device

_MOST_SHUFFLED = 1 << 26


def draw_blocks(total: int, density: float, generator: torch.Generator | None) -> Tensor:
    """int64 ``[round(density * total)]``: numbers below ``total``, uniformly without repetition, in any order.

    A large and sparse grid is not shuffled whole: numbers are drawn until enough of them differ, and some of these are
    taken. No set of numbers is then favored over another of its size, since none is by the draws.
    """
    device = generator.device if generator is not None else index_device()
    wanted = round(density * total)
    if total <= _MOST_SHUFFLED or density > 0.5:
        return torch.randperm(total, generator=generator, device=device)[:wanted]
    found = torch.empty(0, dtype=torch.int64, device=device)
    while found.numel() < wanted:
        more = int(1.2 * (wanted - found.numel())) + 16
        drawn = torch.randint(total, (more,), generator=generator, device=device)
        found = torch.unique(torch.cat([found, drawn]))
    return found[torch.randperm(found.numel(), generator=generator, device=device)[:wanted]]
