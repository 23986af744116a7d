"""Where V of a low-rank part starts: along the gradient of what the layer does not store."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.gradients import Factors
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm, spmm

_MORE, _SWEEPS = 8, 4  # columns beyond the rank, and passes over the gradient in each direction


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
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, EmbeddedConv) and module.low_rank is not None
    }
    if not layers:
        raise ValueError(f"model must hold a layer with the support LowRank(rank), got {type(model).__name__}")
    found = []
    for name, layer in layers.items():
        assert layer.low_rank is not None
        linear = f"{name}.linear" if name else "linear"
        if linear not in factors:
            raise ValueError(f"factors must hold {linear!r}, got {list(factors)}")
        if bool(layer.low_rank.left.any()):
            raise ValueError(f"model must not have trained yet, got a U that is not zero in {name or 'model'!r}")
        found.append((layer.low_rank.right, _directions(factors[linear], layer.linear, layer.low_rank.right.shape[1])))
    for right, directions in found:
        right[:, : directions.shape[1]] = directions


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
