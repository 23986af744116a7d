"""The norm of a gradient inside and outside a support, without forming the gradient (DESIGN.md, law 7).

Sums are fp64: the part outside is a difference of two squares, and may be a small part of either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.fused.workspace import workspace_bytes
from efcn_sparse.gradients.factors import checked_factors
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.slices import row_slices


@torch.no_grad()
def outside_gradient_norm(
    dy: Tensor, x: Tensor, pattern: BlockPattern, *, inside: Tensor | float | None = None
) -> Tensor:
    """The norm of the entries of the gradient ``dyᵀ x`` that lie outside the support: what a sparse layer ignores.

    The norm over all entries comes from two Gram matrices of the batch, or from tiles of ``dyᵀ x`` where the batch is
    so large that this is cheaper; the norm at the support from :func:`sddmm`, a run of block rows at a time. So memory
    is bounded, but for one fp64 copy of ``x``.

    Args:
        dy: ``[..., out_features]``, the gradient of the layer's output.
        x: ``[..., in_features]``, its input, of the dtype and leading dimensions of ``dy``.
        pattern: the support.
        inside: the norm at the support, a scalar, if it is known; the result is then no more precise than it is.

    Returns:
        fp64 scalar, never negative; exactly zero where the support is the whole matrix. Its absolute error is about
        1e-8 of the whole gradient's norm.

    Law: ``outside**2 + inside**2 == ‖dyᵀ x‖² == ((dy @ dy.T) * (x @ x.T)).sum()``.

    Raises:
        ValueError: a shape or device does not fit, or ``inside`` is negative or no scalar.
        TypeError: a dtype does not fit.

    Example:
        >>> import torch, efcn_sparse as es
        >>> pattern = es.BlockPattern.from_mask(torch.eye(2, dtype=torch.bool), (1, 1))
        >>> es.outside_gradient_norm(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]), pattern)
        tensor(4., dtype=torch.float64)
    """
    a, b = checked_factors(dy, x, pattern)
    if inside is not None:
        inside = torch.as_tensor(inside, dtype=torch.float64, device=a.device).detach()
        if inside.dim() != 0 or not bool(inside >= 0):
            what = float(inside) if inside.dim() == 0 else f"shape {list(inside.shape)}"
            raise ValueError(f"inside must be a scalar of at least 0, got {what}")
        inside = inside.square()
    return split_squares(a, b, pattern, inside)[1].sqrt()


def split_squares(
    a: Tensor, b: Tensor, pattern: BlockPattern, inside: Tensor | None = None, *, precise: bool = True
) -> tuple[Tensor, Tensor]:
    """The squared norms of ``aᵀ b`` inside and outside the support, fp64 scalars.

    Args:
        a, b: ``[N, out_features]`` and ``[N, in_features]``.
        inside: the first of the two, if it is known.
        precise: multiply for the first in fp64 too, and not in fp32.
    """
    if inside is None:
        inside = support_square(
            a, b, pattern, torch.float64 if precise else torch.promote_types(a.dtype, torch.float32)
        )
    if pattern.nnz == pattern.shape[0] * pattern.shape[1]:
        return inside, torch.zeros_like(inside)
    return inside, (product_square(a, b) - inside).clamp(min=0)  # NaN stays NaN


def support_square(a: Tensor, b: Tensor, pattern: BlockPattern, dtype: torch.dtype) -> Tensor:
    """fp64 scalar: the squared norm of ``aᵀ b`` at the support, from products in ``dtype``."""
    block_bytes = 8 * pattern.block_shape[0] * pattern.block_shape[1]
    most = max(1, workspace_bytes(a.device) // (2 * block_bytes))
    total, right = a.new_zeros((), dtype=torch.float64), b.to(dtype)
    for part in row_slices(pattern, most):
        total += sddmm(a[:, part.rows].to(dtype), right, part.pattern).double().square_().sum()
    return total


def product_square(a: Tensor, b: Tensor) -> Tensor:
    """fp64 scalar: the squared norm of ``aᵀ b`` over all entries, by the cheaper of two exact ways.

    Law: ``‖aᵀ b‖² = Σ (a aᵀ) ∘ (b bᵀ)``.
    """
    batch, out_features, in_features = a.shape[0], a.shape[1], b.shape[1]
    if batch * (out_features + in_features) <= out_features * in_features:
        return _square_by_grams(a, b)
    return _square_by_tiles(a, b)


def _square_by_grams(a: Tensor, b: Tensor) -> Tensor:
    batch = a.shape[0]
    step = max(1, workspace_bytes(a.device) // (3 * 8 * max(1, batch)))
    total = a.new_zeros((), dtype=torch.float64)
    for first in range(0, batch, step):
        rows = slice(first, first + step)
        total += _gram_rows(a, rows, step).mul_(_gram_rows(b, rows, step)).sum()
    return total


def _gram_rows(factor: Tensor, rows: slice, step: int) -> Tensor:
    """fp64 ``factor[rows] @ factor.T``, from ``step`` features at a time."""
    gram = factor.new_zeros((len(factor[rows]), factor.shape[0]), dtype=torch.float64)
    for first in range(0, factor.shape[1], step):
        features = factor[:, first : first + step].double()
        gram.addmm_(features[rows], features.T)
    return gram


def _square_by_tiles(a: Tensor, b: Tensor) -> Tensor:
    """Over runs of rows of ``aᵀ b``; used where the batch is large, so that a run is no larger than a factor."""
    total, right = a.new_zeros((), dtype=torch.float64), b.double()
    step = max(1, workspace_bytes(a.device) // (8 * max(1, a.shape[0] + b.shape[1])))
    for first in range(0, a.shape[1], step):
        total += (a[:, first : first + step].double().T @ right).square_().sum()
    return total
