"""The off-local weights of an embedded convolution as the product of two narrow matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.gradients.factors import Factors
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm, spmm

_MORE, _SWEEPS = 8, 4  # of start_low_rank: columns beyond the rank, and passes over the gradient each way


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
        weights_were_written()

    def forward(self, x: Tensor, linear: SparseLinear) -> Tensor:
        """``[N, in_features]`` to ``[N, out_features]``."""
        stored = spmm(x, self.stored(linear), linear.pattern, backend=linear.backend)
        return (x @ self.right) @ self.left.T - stored

    def stored(self, linear: SparseLinear) -> Tensor:
        """``U Vᵀ`` at the blocks that ``linear`` stores."""
        return sddmm(self.left.T, self.right.T, linear.pattern, backend=linear.backend)

    def extra_repr(self) -> str:
        return f"in_features={len(self.right)}, out_features={len(self.left)}, rank={self.right.shape[1]}"


class NarrowProduct(nn.Module):
    """``U Vᵀ`` at every entry of W, for inference."""

    def __init__(self, part: LowRankPart) -> None:
        super().__init__()
        self.left = nn.Parameter(part.left.detach().clone(), requires_grad=False)
        self.right = nn.Parameter(part.right.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor, _: nn.Module) -> Tensor:
        return (x @ self.right) @ self.left.T


@torch.no_grad()
def start_low_rank(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Set ``V`` of every layer with the support :class:`LowRank` by a gradient, in place; to be called before training.

    Its columns become the first right singular vectors of the gradient outside the stored entries, found by subspace
    iteration (Halko, Martinsson and Tropp, SIAM Review 2011) with that gradient as an operator, never a matrix. With
    ``U`` zero the model computes what it did, and the first step of SGD moves the off-local weights by the gradient's
    projection onto these vectors. Memory: a copy of the size of one layer's ``values`` at a time.

    Args:
        model: any module that holds such layers.
        factors: what :func:`efcn_sparse.record_factors` gave for a batch.

    Raises:
        ValueError: no layer has a low-rank part, one has trained already, or ``factors`` lacks one. Nothing has changed
            then.

    Example:
        >>> import efcn_sparse as es
        >>> twin = es.embed(nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 8, 8), support=es.LowRank(3))
        >>> with es.record_factors(twin) as factors:
        ...     twin(torch.randn(16, 2, 8, 8)).square().sum().backward()
        >>> es.start_low_rank(twin, factors)
        >>> torch.allclose(twin.low_rank.right.T @ twin.low_rank.right, torch.eye(3), atol=1e-5)
        True
    """
    layers: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "low_rank", None), LowRankPart)
    }
    if not layers:
        raise ValueError(f"model must hold a layer with the support LowRank(rank), got {type(model).__name__}")
    found = []
    for name, layer in layers.items():
        linear = f"{name}.linear" if name else "linear"
        if linear not in factors:
            raise ValueError(f"factors must hold {linear!r}, got {list(factors)}")
        if bool(layer.low_rank.left.any()):
            raise ValueError(f"model must not have trained yet, got a U that is not zero in {name or 'model'!r}")
        found.append((layer.low_rank.right, _directions(factors[linear], layer.linear, layer.low_rank.right.shape[1])))
    for right, directions in found:
        right[:, : directions.shape[1]] = directions
    weights_were_written()


def _directions(factors: Factors, linear: SparseLinear, rank: int) -> Tensor:
    """``[in_features, at most rank]``, orthonormal; none where the gradient is zero outside the support."""
    dtype = torch.promote_types(linear.values.dtype, torch.float32)
    dy, x = factors.dy.to(dtype), factors.x.to(dtype)
    stored = sddmm(dy, x, linear.pattern)
    columns = min(rank + _MORE, linear.in_features, linear.out_features)
    drawn = torch.randn((linear.in_features, columns), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    right = drawn.to(dtype).to(x.device)
    for _ in range(_SWEEPS):
        left = torch.linalg.qr(dy.T @ (x @ right) - spmm(right.T, stored, linear.pattern).T)[0]
        image = x.T @ (dy @ left) - spmm(left.T, stored, linear.pattern, transpose=True).T
        right = torch.linalg.qr(image)[0]
    vectors, lengths, _ = torch.linalg.svd(image, full_matrices=False)
    return vectors[:, : rank if bool(lengths[:1].any()) else 0]
