"""The off-local weights of an embedded convolution as the product of two narrow matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm, spmm


class LowRankPart(nn.Module):
    """``U Vᵀ`` at every entry of W that a sparse layer does not store, and nothing at those that it does.

    It is never formed: ``x V Uᵀ`` is the product over all entries, and what it has at the stored blocks is taken away
    again. ``U`` starts at zero, so that the layer computes what it did without this part; ``V`` starts as the same
    normal numbers each time, with columns of length about one. The gradient of ``V`` is zero until ``U`` has moved.

    Memory: a step holds a copy of the size of ``values`` for each layer from the forward to the backward pass, and
    makes a second one in the backward pass. Time: two more products with the stored blocks in the forward pass, and
    four more in the backward pass.

    Args:
        in_features, out_features: the sides of W.
        rank: the number of columns.
        device, dtype: of the parameters.

    Attributes:
        left: U, ``[out_features, rank]``.
        right: V, ``[in_features, rank]``.

    Law: ``part(x, linear) == x @ (left @ right.T * outside).T``, with ``outside`` 0 at the support of
    ``linear.pattern`` and 1 elsewhere, masked entries of stored blocks included.

    Example:
        >>> import efcn_sparse as es
        >>> linear = SparseLinear(4, 4, es.BlockPattern.from_mask(torch.eye(2, dtype=torch.bool), (2, 2), shape=(4, 4)))
        >>> part = LowRankPart(4, 4, rank=1)
        >>> _ = nn.init.ones_(part.left), nn.init.ones_(part.right)
        >>> part(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), linear).tolist()
        [[7.0, 7.0, 3.0, 3.0]]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty((out_features, rank), device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty((in_features, rank), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """``U`` zero and ``V`` normal; the state of the random generators is not touched."""
        if self.right.is_meta:
            return
        self.left.zero_()
        drawn = torch.randn(self.right.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        self.right.copy_(drawn.div_(max(1, self.right.shape[0]) ** 0.5))

    def forward(self, x: Tensor, linear: SparseLinear) -> Tensor:
        """``[N, in_features]`` to ``[N, out_features]``."""
        pattern, backend = linear.pattern, linear.backend
        stored = sddmm(self.left.T, self.right.T, pattern, backend=backend)
        return (x @ self.right) @ self.left.T - spmm(x, stored, pattern, backend=backend)

    def extra_repr(self) -> str:
        return f"in_features={len(self.right)}, out_features={len(self.left)}, rank={self.right.shape[1]}"
