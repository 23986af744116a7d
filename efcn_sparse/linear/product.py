"""What may stand in for a layer's product while gradients are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from efcn_sparse.pattern import BlockPattern


class Product(Protocol):
    """``x Wᵀ + b`` with a backward pass of its own, as :class:`efcn_sparse.FusedOptimizer` puts into a layer."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """Prepare for blocks that move; what is returned makes it so, cannot fail, and may be called again.

        Args:
            pattern: the one to come.
            source: int64 ``[nnz_blocks]``: which old block each new block is; -1: none, it starts at zero.
            values: the memory in which the values will be.
        """
