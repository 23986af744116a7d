"""Block-sparse matrices of torch and SciPy, both ways, values included, without a dense matrix between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.checks import parts_of_bsr

if TYPE_CHECKING:
    from scipy.sparse import bsr_array


def to_bsr(values: Tensor, pattern: BlockPattern) -> Tensor:
    """W as a :func:`torch.sparse_bsr_tensor`.

    It shares the memory of ``values``, unless a block of the pattern is masked: then it is a copy with zeros outside
    the support. Its index arrays are copies.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``.

    Raises:
        ValueError: a side of W is no multiple of the block.

    Example:
        >>> pattern = BlockPattern.dense((4, 4), (2, 2))
        >>> to_bsr(torch.ones(4, 2, 2), pattern).layout
        torch.sparse_bsr
    """
    pattern.check_values(values)
    _refuse_ragged(pattern, "torch.sparse_bsr")
    support = pattern.support_of_blocks()
    if support is not None:
        values = values.masked_fill(~support.to(values.device), 0)
    return torch.sparse_bsr_tensor(
        pattern.crow_indices, pattern.col_indices, values, size=pattern.shape, check_invariants=False
    )


def from_bsr(matrix: Tensor) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of a sparse BSR matrix; ``values`` shares its memory.

    Example:
        >>> pattern, values = from_bsr(torch.eye(4).to_sparse_bsr((2, 2)))
        >>> pattern.nnz_blocks, values.shape
        (2, torch.Size([2, 2, 2]))
    """
    return BlockPattern.from_bsr(*parts_of_bsr(matrix)), matrix.values()


def to_scipy(values: Tensor, pattern: BlockPattern) -> bsr_array:
    """W as a :class:`scipy.sparse.bsr_array`: a copy, with zeros outside the support.

    SciPy reorders and shortens the arrays of a matrix in place (``eliminate_zeros``, ``sum_duplicates``), so nothing is
    shared with it.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]`` in fp32 or fp64, on any device.

    Raises:
        ValueError: a side of W is no multiple of the block.
        TypeError: SciPy does not compute in the dtype of ``values``.

    Example:
        >>> pattern = BlockPattern.dense((4, 4), (2, 2))
        >>> to_scipy(torch.ones(4, 2, 2), pattern).nnz
        16
    """
    from scipy.sparse import bsr_array

    pattern.check_values(values)
    _refuse_ragged(pattern, "scipy.sparse.bsr_array")
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"values must be float32 or float64 for SciPy, got {values.dtype}")
    support, data = pattern.support_of_blocks(), values.detach().to("cpu", copy=True)
    if support is not None:
        data.masked_fill_(~support.cpu(), 0)
    parts = (data.numpy(), pattern.col_indices.cpu().numpy(), pattern.crow_indices.cpu().numpy())
    return bsr_array(parts, shape=pattern.shape, blocksize=pattern.block_shape)


def from_scipy(matrix: bsr_array) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of a SciPy BSR matrix, copied; duplicates are summed, and blocks sorted."""
    if getattr(matrix, "format", None) != "bsr":
        raise ValueError(f"matrix must be a scipy.sparse.bsr_array, got {type(matrix).__name__}")
    matrix = matrix.copy()
    matrix.sum_duplicates()
    crow, col, data = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return BlockPattern.from_bsr(crow, col, matrix.shape, matrix.blocksize), data


def _refuse_ragged(pattern: BlockPattern, layout: str) -> None:
    if pattern.is_ragged:
        raise ValueError(f"pattern must have sides that are multiples of its block for {layout}, got {pattern}")


def __getattr__(name: str) -> object:
    """The conversions of layers, whose code lies with the layers."""
    if name.startswith("locally_connected_from_"):
        from efcn_sparse.embedding import foreign_weights

        return getattr(foreign_weights, name)
    raise AttributeError(f"module 'efcn_sparse.convert' has no attribute {name!r}")
