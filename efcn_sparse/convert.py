"""Block-sparse matrices of torch and SciPy, both ways, and of other libraries; without a dense matrix between.

All are ``(pattern, values)`` of the same matrix, ``[out_features, in_features]`` where it is the weight of a layer;
:func:`to_layer` makes the layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efcn_sparse.linear import SparseLinear
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
    return torch.sparse_bsr_tensor(
        pattern.crow_indices, pattern.col_indices, pattern.masked(values), size=pattern.shape, check_invariants=False
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
    support = pattern.support_of_blocks()
    # as SciPy 1.17 sorts the blocks of contiguous data alone (findings/scipy_bsr_sort_moves_half.sh)
    data = values.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if support is not None:
        data.masked_fill_(~support.cpu(), 0)
    parts = (data.numpy(), pattern.col_indices.cpu().numpy(), pattern.crow_indices.cpu().numpy())
    return bsr_array(parts, shape=pattern.shape, blocksize=pattern.block_shape)


def from_scipy(matrix: bsr_array) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of a SciPy BSR matrix, copied; duplicates are summed, and blocks sorted."""
    if getattr(matrix, "format", None) != "bsr":
        cure = "; matrix.tobsr(blocksize=(rows, cols)) makes one" if hasattr(matrix, "tobsr") else ""
        raise ValueError(f"matrix must be a scipy.sparse.bsr_array, got {type(matrix).__name__}{cure}")
    matrix = matrix.copy()
    matrix.sum_duplicates()
    crow, col, data = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return BlockPattern.from_bsr(crow, col, matrix.shape, matrix.blocksize), data


def from_torchao(weight: Any) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of torchao's ``BlockSparseTensor``; ``values`` shares its memory.

    That is what ``sparsify_(model, BlockSparseWeightConfig(blocksize=…))`` makes of each ``linear.weight`` (up to
    torchao 0.18). It stores W ``[out_features, in_features]`` as torch's BSR does: blocks by rows, not transposed.

    Args:
        weight: anything with ``shape``, ``bsr_crow_indices``, ``bsr_col_indices`` and ``bsr_values``.

    Raises:
        TypeError: ``weight`` is something else; one that is quantized, too.

    Example:
        >>> from types import SimpleNamespace
        >>> weight = SimpleNamespace(
        ...     shape=(4, 8), bsr_crow_indices=torch.tensor([0, 1, 2]), bsr_col_indices=torch.tensor([3, 0]),
        ...     bsr_values=torch.ones(2, 2, 2))
        >>> from_torchao(weight)[0].to_mask().sum().item()
        8
    """
    crow, col, values, shape = _parts(
        "weight", "a BlockSparseTensor of torchao", weight, "bsr_crow_indices", "bsr_col_indices", "bsr_values", "shape"
    )
    if not values.is_floating_point():
        raise TypeError(f"weight must hold floating-point numbers, got quantized ones of {values.dtype}")
    values = values.detach()
    return BlockPattern.from_bsr(crow, col, shape, values.shape[1:]), values


def from_stk(matrix: Any) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of an ``stk.Matrix``, as it is; ``.t()`` of one keeps its data, and counts here too.

    In ``stk.ops.dds(x, w)``, which is x · w, the weight lies as ``[in_features, out_features]``: convert ``w.t()``.
    Square blocks, by rows, not transposed (stk 0.7.1).

    Args:
        matrix: anything with the attributes of one: ``size()``, ``is_contiguous()``, ``data``, ``row_indices`` and
            ``column_indices``; of two dimensions.

    Raises:
        TypeError: ``matrix`` is something else.
        ValueError: it has batch dimensions, or a block twice.
    """
    data, rows, cols, size, untransposed = _parts(
        "matrix", "an stk.Matrix", matrix, "data", "row_indices", "column_indices", "size", "is_contiguous"
    )
    shape = tuple(size())
    if len(shape) != 2:
        raise ValueError(f"matrix must have two dimensions, got {list(shape)}; view it as a matrix first")
    if not untransposed():
        rows, cols, data = cols, rows, data.transpose(1, 2)
    return _by_rows(rows, cols, data.detach(), shape)


def from_pytorch_block_sparse(layer: Any) -> tuple[BlockPattern, Tensor]:
    """``(pattern, values)`` of the weight of pytorch_block_sparse's ``BlockSparseLinear``, or of that matrix; a copy.

    W is ``[out_features, in_features]``. Its ``data`` holds each block transposed and, once blocks were replaced, in
    any order: the second column of ``cols_a`` has the places. With blocks other than 32×32 what trains is another
    parameter, the dense ``_dense``, and ``data`` stays what it was: then the blocks of ``_dense`` count (0.1.2).

    Args:
        layer: a ``BlockSparseLinear``; or a ``BlockSparseMatrix``, or anything with its ``shape``, ``block_shape``,
            ``data``, ``cols_a`` and ``row_start_ends_a``, and perhaps ``_dense``.

    Raises:
        TypeError: ``layer`` is something else.
    """
    matrix = layer if hasattr(layer, "cols_a") else getattr(layer, "weight", layer)
    shape, block_shape, data, columns, starts = _parts(
        "layer", "a BlockSparseLinear or its weight", matrix,
        "shape", "block_shape", "data", "cols_a", "row_start_ends_a",
    )  # fmt: skip
    height, width = block_shape
    crow, (cols, places) = starts.long(), columns.long().unbind(1)
    dense = getattr(matrix, "_dense", None)
    if dense is not None:
        pattern = BlockPattern.from_bsr(crow, cols, shape, block_shape)
        return pattern, pattern.gather(dense.detach())
    blocks = data.detach().view(-1, width, height).transpose(1, 2)
    return BlockPattern.from_bsr(crow, cols, shape, block_shape), blocks[places].contiguous()


def to_layer(values: Tensor, pattern: BlockPattern, bias: Tensor | None = None) -> SparseLinear:
    """The :class:`efcn_sparse.SparseLinear` with this W ``[out_features, in_features]`` and bias, copied.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        bias: ``[out_features]``.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> matrix = torch.nn.Linear(4, 6).weight.detach().to_sparse_bsr((2, 2))
        >>> pattern, values = from_bsr(matrix)
        >>> to_layer(values, pattern, torch.zeros(6))
        SparseLinear(in_features=4, out_features=6, block_shape=(2, 2), nnz_blocks=6, density=1, bias=True)
    """
    pattern.check_values(values)
    rows, cols = pattern.shape
    if bias is not None and bias.shape != (rows,):
        raise ValueError(f"bias must be [{rows}], got {list(bias.shape)}")
    layer = SparseLinear(cols, rows, pattern, bias is not None, values.device, values.dtype)
    with torch.no_grad():
        layer.values.copy_(values)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)
    return layer


def _parts(name: str, expected: str, given: Any, *attributes: str) -> list[Any]:
    missing = [attribute for attribute in attributes if not hasattr(given, attribute)]
    if missing:
        raise TypeError(f"{name} must be {expected}, got {type(given).__name__} without {', '.join(missing)}")
    return [getattr(given, attribute) for attribute in attributes]


def _by_rows(rows: Tensor, cols: Tensor, blocks: Tensor, shape: tuple[int, ...]) -> tuple[BlockPattern, Tensor]:
    """Pattern and values of blocks at these places, in any order."""
    block_shape = (blocks.shape[1], blocks.shape[2])
    pattern = BlockPattern.from_blocks(rows, cols, shape, block_shape)
    if pattern.nnz_blocks != len(blocks):
        raise ValueError(f"matrix must hold each block once, got {len(blocks)} at {pattern.nnz_blocks} places")
    order = torch.argsort(rows.long() * pattern.grid[1] + cols.long())
    return pattern, blocks[order].contiguous()


def _refuse_ragged(pattern: BlockPattern, layout: str) -> None:
    if pattern.is_ragged:
        raise ValueError(f"pattern must have sides that are multiples of its block for {layout}, got {pattern}")


def __getattr__(name: str) -> object:
    """The conversions of layers, whose code lies with the layers."""
    if name.startswith("locally_connected_from_"):
        from efcn_sparse.embedding import foreign_weights

        return getattr(foreign_weights, name)
    raise AttributeError(f"module 'efcn_sparse.convert' has no attribute {name!r}")
