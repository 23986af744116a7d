"""Off-local blocks before there is a gradient to place them by."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor


def with_spread_blocks(stored: Tensor, more: int, total: int) -> Tensor:
    """``stored`` and ``more`` other blocks, drawn evenly from all the others, always the same.

    Memory and work grow with the number of blocks that are stored, not with ``total``.

    Args:
        stored: int64 ``[n]``: numbers of blocks in ``[0, total)``, ascending.

    Returns:
        int64 ``[n + more]``, ascending.

    Example:
        >>> with_spread_blocks(torch.tensor([0, 2, 3]), more=2, total=5)
        tensor([0, 1, 2, 3, 4])
    """
    free = total - stored.numel()
    drawn = numpy.random.Generator(numpy.random.PCG64(0)).choice(free, size=more, replace=False, shuffle=False)
    ranks = torch.from_numpy(numpy.sort(drawn).astype(numpy.int64))
    before = torch.searchsorted(
        stored - torch.arange(stored.numel()), ranks, right=True
    )  # stored ones in front of each
    return torch.cat([stored, ranks + before]).sort().values
