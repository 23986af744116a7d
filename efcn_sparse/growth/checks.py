"""Two factors of a gradient, checked and flattened."""

from __future__ import annotations

import math

from torch import Tensor

from efcn_sparse.ops.checks import check_alike, check_features, check_floating, check_pattern
from efcn_sparse.pattern import BlockPattern


def checked_factors(dy: Tensor, x: Tensor, pattern: BlockPattern) -> tuple[Tensor, Tensor]:
    """``dy`` and ``x`` as detached ``[N, out_features]`` and ``[N, in_features]``, or an error."""
    check_floating("dy", dy)
    check_floating("x", x)
    check_pattern(pattern, "dy", dy)
    check_features("dy", dy, pattern.shape[0])
    check_features("x", x, pattern.shape[1])
    check_alike("x", x, "dy", dy, may_cast=False)
    if dy.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"x must have the leading dimensions of dy, {list(dy.shape[:-1])}, got {list(x.shape[:-1])}")
    if dy.is_meta:
        raise ValueError(f"dy must hold numbers, got a meta tensor of shape {list(dy.shape)}")
    batch = math.prod(dy.shape[:-1])
    return dy.detach().reshape(batch, pattern.shape[0]), x.detach().reshape(batch, pattern.shape[1])
