"""Initial values by fan-in and fan-out of what is stored: the functions of :mod:`torch.nn.init`, for sparse layers.

Those of torch take ``values`` ``[nnz_blocks, block_rows, block_cols]`` for the kernels of a convolution and read
``block_rows · block_cols`` as the fan-in. Here each entry of W is drawn by the number of stored entries in its own row
(fan-in) or column (fan-out), as far as they are in the support; the bias stays as it is. On a full pattern that is what
torch does with the dense W. There is no ``orthogonal_``: with few blocks no W of a given pattern need be orthogonal.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.initialize import by_blocks, fan_in_of_stored

__all__ = ["kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"]


def kaiming_uniform_(
    layer: nn.Module,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw ``values`` from U(−b, b) with b = gain · sqrt(3 / fan), fan that of each row of W, or of each column.

    Args:
        layer: a :class:`SparseLinear`, or an embedded convolution, whose whole support is drawn.
        a, mode, nonlinearity, generator: as for :func:`torch.nn.init.kaiming_uniform_`.

    Returns:
        ``values`` of the layer, ``[nnz_blocks, block_rows, block_cols]``; zero outside the support.

    Source: He, Zhang, Ren, Sun 2015, arXiv 1502.01852.

    Example:
        >>> import efcn_sparse as es
        >>> layer = es.SparseLinear(512, 256, es.BlockPattern.dense((256, 512), (64, 64)))
        >>> bound = math.sqrt(6 / 512)
        >>> 0.99 * bound < float(es.init.kaiming_uniform_(layer, nonlinearity="relu").detach().abs().max()) <= bound
        True
    """
    return _draw(layer, nn.init.calculate_gain(nonlinearity, a), mode, uniform=True, generator=generator)


def kaiming_normal_(
    layer: nn.Module,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw ``values`` from N(0, gain² / fan); see :func:`kaiming_uniform_`."""
    return _draw(layer, nn.init.calculate_gain(nonlinearity, a), mode, uniform=False, generator=generator)


def xavier_uniform_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``values`` from U(−b, b) with b = gain · sqrt(6 / (fan-in of the row + fan-out of the column)).

    Args:
        layer: a :class:`SparseLinear`, or an embedded convolution, whose whole support is drawn.
        gain, generator: as for :func:`torch.nn.init.xavier_uniform_`.

    Returns:
        ``values`` of the layer, ``[nnz_blocks, block_rows, block_cols]``; zero outside the support.

    Source: Glorot, Bengio 2010.
    """
    return _draw(layer, gain, "both", uniform=True, generator=generator)


def xavier_normal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``values`` from N(0, 2 · gain² / (fan-in + fan-out)); see :func:`xavier_uniform_`."""
    return _draw(layer, gain, "both", uniform=False, generator=generator)


@torch.no_grad()
def _draw(layer: nn.Module, gain: float, mode: str, *, uniform: bool, generator: torch.Generator | None) -> Tensor:
    linear = layer.linear if isinstance(layer, EmbeddedConv) else layer
    if not isinstance(linear, SparseLinear):
        raise TypeError(f"layer must be a SparseLinear or an embedded convolution, got {type(layer).__name__}")
    pattern, values = linear.pattern, linear.values
    height, width = pattern.block_shape
    by_row = by_blocks(fan_in_of_stored(pattern).double(), height)
    by_col = by_blocks(fan_in_of_stored(pattern.transposed()).double(), width)
    fan_in = by_row[pattern.rows_of_blocks().to(torch.int64)].unsqueeze(2)
    fan_out = by_col[pattern.col_indices.to(torch.int64)].unsqueeze(1)
    fans = {"fan_in": fan_in, "fan_out": fan_out, "both": (fan_in + fan_out) / 2}
    if mode not in fans:
        raise ValueError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    deviation = gain * fans[mode].clamp(min=1).rsqrt()
    if uniform:
        values.uniform_(-1.0, 1.0, generator=generator).mul_(math.sqrt(3.0) * deviation)
    else:
        values.normal_(generator=generator).mul_(deviation)
    support = pattern.support_of_blocks()
    return values if support is None else values.masked_fill_(~support, 0)
