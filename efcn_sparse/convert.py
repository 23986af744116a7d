"""Block-sparse matrices of torch and SciPy, both ways, without a dense matrix between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efcn_sparse.pattern.block_pattern import BlockPattern

if TYPE_CHECKING:
    from scipy.sparse import bsr_array


def to_bsr(values: Tensor, pattern: BlockPattern) -> Tensor:
    """W as a :func:`torch.sparse_bsr_tensor` that shares the memory of ``values``.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``, zero outside the support.

    Raises:
        ValueError: a side of W is no multiple of the block.

    Example:
        >>> pattern = BlockPattern.dense((4, 4), (2, 2))
        >>> to_bsr(torch.ones(4, 2, 2), pattern).layout
        torch.sparse_bsr
    """
    pattern.check_values(values)
    _refuse_ragged(pattern, "torch.sparse_bsr")
    return torch.sparse_bsr_tensor(
        pattern.crow_indices, pattern.col_indices, values, size=pattern.shape, check_invariants=False
    )


def from_bsr(matrix: Tensor) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of a sparse BSR matrix; ``values`` shares its memory."""
    if matrix.layout != torch.sparse_bsr or matrix.dim() != 2:
        raise ValueError(f"matrix must be a two-dimensional sparse BSR tensor, got {matrix.layout}, {matrix.dim()}-D")
    values = matrix.values()
    return (
        BlockPattern.from_bsr(matrix.crow_indices(), matrix.col_indices(), tuple(matrix.shape), values.shape[1:]),
        values,
    )


def to_scipy(values: Tensor, pattern: BlockPattern) -> bsr_array:
    """W as a :class:`scipy.sparse.bsr_array` that shares the memory of ``values`` (fp32 or fp64, on the CPU).

    Raises:
        ValueError: a side of W is no multiple of the block.
    """
    from scipy.sparse import bsr_array

    pattern.check_values(values)
    _refuse_ragged(pattern, "scipy.sparse.bsr_array")
    # copies of the indices: SciPy's eliminate_zeros and sort_indices would write into the pattern
    parts = (values.detach().numpy(), pattern.col_indices.numpy().copy(), pattern.crow_indices.numpy().copy())
    return bsr_array(parts, shape=pattern.shape, blocksize=pattern.block_shape)


def from_scipy(matrix: bsr_array) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of a SciPy BSR matrix; a copy is sorted first if ``matrix`` is not in canonical form."""
    if getattr(matrix, "format", None) != "bsr":
        raise ValueError(f"matrix must be a scipy.sparse.bsr_array, got {type(matrix).__name__}")
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    crow, col = torch.from_numpy(matrix.indptr.copy()), torch.from_numpy(matrix.indices.copy())
    return BlockPattern.from_bsr(crow, col, matrix.shape, matrix.blocksize), torch.from_numpy(matrix.data)


def _refuse_ragged(pattern: BlockPattern, layout: str) -> None:
    if pattern.is_ragged:
        raise ValueError(f"pattern must have sides that are multiples of its block for {layout}, got {pattern}")


def __getattr__(name: str) -> object:
    """The conversions of layers, whose code lies with the layers."""
    if name.startswith("locally_connected_from_"):
        from efcn_sparse.embedding import foreign_weights

        return getattr(foreign_weights, name)
    raise AttributeError(f"module 'efcn_sparse.convert' has no attribute {name!r}")
