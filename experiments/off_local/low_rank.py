"""The low-rank matrix nearest to another one in the entries that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SWEEPS = 15


def low_rank(matrix: Tensor, ranks: Sequence[int], free: Tensor | None = None, sweeps: int = _SWEEPS) -> list[Tensor]:
    """The best ``U Vᵀ`` of each rank; with ``free``, a good one for the entries outside ``free`` alone.

    Without ``free`` it is the truncated singular value decomposition. With it, it starts there and goes on by
    alternating least squares in which free entries are taken to be what the fit says (Hastie, Mazumder, Lee and Zadeh,
    "Matrix completion and low-rank SVD via fast alternating least squares", JMLR 2015): the error outside ``free``
    never grows, and ends in a local minimum at best.

    Args:
        matrix: ``[m, n]``.
        free: bool ``[m, n]``.

    Example:
        >>> ones = torch.ones(4, 4, dtype=torch.float64)
        >>> hollow = ones - torch.eye(4, dtype=torch.float64)
        >>> (fitted,) = low_rank(hollow, [1], free=torch.eye(4, dtype=torch.bool))
        >>> torch.allclose(fitted, ones, atol=1e-3)
        True
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = []
    for rank in ranks:
        left, right = u[:, :rank], v[:rank].T * s[:rank]
        for _ in range(sweeps if free is not None and rank else 0):
            assert free is not None
            filled = torch.where(free, left @ right.T, matrix)
            left = torch.linalg.qr(filled @ right)[0]
            right = filled.T @ left
        found.append(left @ right.T)
    return found
