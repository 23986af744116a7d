"""The truth in fp64, brute force, and how near to it a result must be.

Nothing here uses the library beyond the index arrays of a pattern: blocks are placed one by one in a Python loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efcn_sparse import BlockPattern

CONSTANT = 4.0
FROBENIUS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class Expected(NamedTuple):
    """A result, the sum of its terms' magnitudes (|A||B|), and how many terms each entry has."""

    exact: Tensor
    magnitude: Tensor
    terms: Tensor


def places_of(pattern: BlockPattern) -> list[tuple[int, int, int]]:
    """(block, block row, block column) of each stored block."""
    starts, cols = pattern.crow_indices.tolist(), pattern.col_indices.tolist()
    return [(k, row, cols[k]) for row in range(pattern.grid[0]) for k in range(starts[row], starts[row + 1])]


def support_of(pattern: BlockPattern) -> Tensor:
    """bool ``[nnz_blocks, block_rows, block_cols]``: the stored entries that count, on the pattern's device."""
    (height, width), (out_features, in_features) = pattern.block_shape, pattern.shape
    support = torch.ones(pattern.nnz_blocks, height, width, dtype=torch.bool)
    mask_index, masks = pattern.mask_index.tolist(), pattern.masks.bool().cpu()
    for k, row, col in places_of(pattern):
        support[k, max(out_features - row * height, 0) :, :] = False
        support[k, :, max(in_features - col * width, 0) :] = False
        if mask_index and mask_index[k] >= 0:
            support[k] &= masks[mask_index[k]]
    return support.to(pattern.device)


def dense(values: Tensor, pattern: BlockPattern) -> Tensor:
    """fp64 ``[out_features, in_features]``: W."""
    (height, width), grid = pattern.block_shape, pattern.grid
    padded = torch.zeros(grid[0] * height, grid[1] * width, dtype=torch.float64)
    counted = torch.where(support_of(pattern).cpu(), values.detach().cpu().double(), 0.0)
    for k, row, col in places_of(pattern):
        padded[row * height : (row + 1) * height, col * width : (col + 1) * width] = counted[k]
    return padded[: pattern.shape[0], : pattern.shape[1]].clone()


def at_blocks(matrix: Tensor, pattern: BlockPattern) -> Tensor:
    """fp64 ``[nnz_blocks, block_rows, block_cols]``: the entries of ``matrix`` at the stored blocks, else zero."""
    (height, width), grid = pattern.block_shape, pattern.grid
    padded = torch.zeros(grid[0] * height, grid[1] * width, dtype=torch.float64)
    padded[: pattern.shape[0], : pattern.shape[1]] = matrix
    values = torch.zeros(pattern.nnz_blocks, height, width, dtype=torch.float64)
    for k, row, col in places_of(pattern):
        values[k] = padded[row * height : (row + 1) * height, col * width : (col + 1) * width]
    return torch.where(support_of(pattern).cpu(), values, 0.0)


def column_sums(dy: Tensor) -> Expected:
    """The gradient of a bias."""
    dy = dy.detach().cpu().double()
    return Expected(dy.sum(0), dy.abs().sum(0), torch.tensor(float(dy.shape[0])))


def spmm(
    x: Tensor, values: Tensor, pattern: BlockPattern, *, transpose: bool = False, bias: Tensor | None = None
) -> Expected:
    """``x Wᵀ + bias``, or ``x W + bias``."""
    x, weight = x.detach().cpu().double(), dense(values, pattern)
    counts = dense(torch.ones(pattern.values_shape), pattern)
    if not transpose:
        weight, counts = weight.T, counts.T
    exact, magnitude, terms = x @ weight, x.abs() @ weight.abs(), counts.sum(0)
    if bias is not None:
        bias = bias.detach().cpu().double()
        exact, magnitude, terms = exact + bias, magnitude + bias.abs(), terms + 1
    return Expected(exact, magnitude, terms)


def sddmm(a: Tensor, b: Tensor, pattern: BlockPattern) -> Expected:
    """``aᵀ b`` at the stored blocks, summed over leading dimensions."""
    a, b = (
        t.detach().cpu().double().flatten(0, -2) if t.dim() > 1 else t.detach().cpu().double()[None] for t in (a, b)
    )
    exact, magnitude = at_blocks(a.T @ b, pattern), at_blocks(a.abs().T @ b.abs(), pattern)
    return Expected(exact, magnitude, torch.tensor(float(a.shape[0])))


def accumulated(result: Expected, alpha: float, beta: float, old: Tensor) -> Expected:
    """``alpha · result + beta · old``."""
    old = torch.zeros_like(result.exact) if beta == 0.0 else beta * old.detach().cpu().double()
    return Expected(alpha * result.exact + old, abs(alpha) * result.magnitude + old.abs(), result.terms + 2)


def assert_accurate(got: Tensor, expected: Expected, what: str, *, norm: bool = True) -> None:
    """|err| ≤ c·u·√K·(|A||B|) per entry, with one rounding to the result's dtype; and with ``norm``, where entries are
    many and random, a relative Frobenius bound.

    u is the unit roundoff of what is accumulated in: fp32, or fp64 for fp64. Entries without terms must be zeros.
    """
    dtype, shape = got.dtype, tuple(got.shape)
    assert shape == tuple(expected.exact.shape), (
        f"{what}: shape must be {list(expected.exact.shape)}, got {list(shape)}"
    )
    info = torch.finfo(dtype)
    accumulate = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    bound = CONSTANT * accumulate * expected.terms.sqrt() * expected.magnitude
    if dtype in (torch.bfloat16, torch.float16):
        underflow = torch.where(expected.magnitude > 0, info.smallest_normal * info.eps, 0.0)
        bound = bound * (1 + info.eps) + expected.exact.abs() * info.eps / 2 + underflow
    error = (got.detach().cpu().double() - expected.exact).abs()
    wrong = ~(error <= bound)  # NaN is wrong
    if bool(wrong.any()):
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} entries out of bounds, first at {where}: "
            f"got {float(got[where])}, expected {float(expected.exact[where])} ± {float(bound[where]):.3g}"
        )
    size, distance = float(expected.exact.norm()), float(error.norm())
    within = not norm or distance <= FROBENIUS[dtype] * size
    assert within, f"{what}: relative Frobenius error {distance / max(size, 1e-300):.3g}"
