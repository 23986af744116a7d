"""What a pattern is made of, checked before anything is built from it."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.pattern.sources import canonical_masks
from efcn_sparse.pattern.structure import Structure, grid_of

_MOST_BLOCKS = 2**31 - 1


def checked_pair(name: str, pair: Sequence[int], least: int) -> tuple[int, int]:
    """``pair`` as two ints of at least ``least``."""
    try:
        first, second = (operator.index(side) for side in pair)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be two integers, got {pair!r}") from None
    if any(isinstance(side, bool) for side in pair) or min(first, second) < least:
        raise ValueError(f"{name} must be two integers of at least {least}, got {tuple(pair)}")
    return first, second


def checked_density(density: object) -> float:
    """``density`` as a float in [0, 1]."""
    if not isinstance(density, numbers.Real):
        raise TypeError(f"density must be a number in [0, 1], got {density!r}")
    if not 0.0 <= float(density) <= 1.0:
        raise ValueError(f"density must lie in [0, 1], got {density}")
    return float(density)


def index_device(device: torch.device | str | None = None) -> torch.device:
    """``device``, else the default one; a pattern has no meta form, so in place of meta it is the CPU."""
    chosen = torch.get_default_device() if device is None else torch.device(device)
    return torch.device("cpu") if chosen.type == "meta" else chosen


def check_has_numbers(name: str, tensor: Tensor) -> None:
    """Refuse what is no tensor, and a meta tensor, which holds no numbers to decide by."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.is_meta:
        raise ValueError(f"{name} must hold numbers, got a meta tensor of shape {list(tensor.shape)}")


def parts_of_bsr(matrix: Tensor) -> tuple[Tensor, Tensor, Sequence[int], Sequence[int]]:
    """``crow_indices``, ``col_indices``, shape and block shape of a sparse BSR matrix."""
    if matrix.layout != torch.sparse_bsr or matrix.dim() != 2:
        raise ValueError(f"matrix must be a two-dimensional sparse BSR tensor, got {matrix.layout}, {matrix.dim()}-D")
    return matrix.crow_indices(), matrix.col_indices(), tuple(matrix.shape), tuple(matrix.values().shape[1:3])


def checked_mask(mask: Tensor | np.ndarray) -> Tensor:
    """``mask``, a bool matrix of torch or NumPy."""
    if isinstance(mask, np.ndarray):
        mask = torch.tensor(np.ascontiguousarray(mask), device=index_device())
    check_has_numbers("mask", mask)
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise ValueError(f"mask must be a bool matrix, got {mask.dtype} of shape {list(mask.shape)}")
    return mask


def _checked_integers(name: str, index: Tensor | Sequence[int]) -> Tensor:
    index = index if isinstance(index, Tensor) else torch.as_tensor(index, device=index_device())
    check_has_numbers(name, index)
    fractional = index.dtype == torch.bool or index.is_floating_point() or index.is_complex()
    if fractional and index.numel():  # an empty list becomes a float tensor
        raise TypeError(f"{name} must hold integers, got {index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"{name} must have one dimension, got shape {list(index.shape)}")
    return index.detach().to(torch.int64)


def checked_indices(
    crow: Tensor | Sequence[int], col: Tensor | Sequence[int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """``crow_indices`` and ``col_indices`` as fresh int32 arrays, or an error that says what is wrong."""
    crow, col = _checked_integers("crow_indices", crow), _checked_integers("col_indices", col)
    if crow.device != col.device:
        raise ValueError(f"crow_indices and col_indices must be on one device, got {crow.device} and {col.device}")
    if crow.numel() != grid[0] + 1:
        raise ValueError(f"crow_indices must be [{grid[0] + 1}], got [{crow.numel()}]")
    if col.numel() > _MOST_BLOCKS:
        raise ValueError(f"col_indices must hold at most {_MOST_BLOCKS} blocks, got {col.numel()}")
    if int(crow[0]) != 0 or int(crow[-1]) != col.numel():
        raise ValueError(
            f"crow_indices must run from 0 to the {col.numel()} blocks of col_indices, "
            f"got {int(crow[0])} to {int(crow[-1])}"
        )
    if bool((crow.diff() < 0).any()):
        at = int((crow.diff() < 0).nonzero()[0])
        raise ValueError(f"crow_indices must not decrease, got {int(crow[at])} then {int(crow[at + 1])} at row {at}")
    if col.numel():
        low, high = int(col.min()), int(col.max())
        if low < 0 or high >= grid[1]:
            raise ValueError(f"col_indices must lie in [0, {grid[1]}), got values from {low} to {high}")
        row = torch.repeat_interleave(torch.arange(grid[0], device=crow.device), crow.diff())
        bad = (row[1:] == row[:-1]) & (col[1:] <= col[:-1])
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise ValueError(
                f"col_indices must increase strictly within a row, "
                f"got {int(col[at])} then {int(col[at + 1])} in row {int(row[at])}"
            )
    return crow.to(torch.int32), col.to(torch.int32)


def checked_positions(
    rows: Tensor | Sequence[int], cols: Tensor | Sequence[int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Block rows and block columns as int64 arrays of one length, inside the grid."""
    rows, cols = _checked_integers("rows", rows), _checked_integers("cols", cols)
    if rows.device != cols.device:
        raise ValueError(f"rows and cols must be on one device, got {rows.device} and {cols.device}")
    if rows.numel() != cols.numel():
        raise ValueError(f"cols must be [{rows.numel()}] as rows is, got [{cols.numel()}]")
    for name, index, bound in (("rows", rows, grid[0]), ("cols", cols, grid[1])):
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < bound):
            raise ValueError(
                f"{name} must lie in [0, {bound}), got values from {int(index.min())} to {int(index.max())}"
            )
    return rows, cols


def checked_masks(
    index: Tensor | None, masks: Tensor | None, col: Tensor, block_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """``mask_index`` and ``masks`` as fresh int32 and uint8 arrays; both empty where no block is masked."""
    none = col.new_empty(0), torch.empty((0, *block_shape), dtype=torch.uint8, device=col.device)
    if (index is None) != (masks is None):
        given = "masks" if index is None else "mask_index"
        raise ValueError(f"mask_index and masks must be given together, got {given} only")
    if index is None or masks is None or (index.numel() == 0 and masks.shape[0] == 0):
        return none
    index = _checked_integers("mask_index", index)
    if tuple(masks.shape[1:]) != block_shape or masks.dim() != 3:
        raise ValueError(f"masks must be [n, {block_shape[0]}, {block_shape[1]}], got {list(masks.shape)}")
    if masks.dtype not in (torch.bool, torch.uint8):
        raise TypeError(f"masks must be bool or uint8, got {masks.dtype}")
    if index.numel() != col.numel():
        raise ValueError(f"mask_index must be [{col.numel()}], got [{index.numel()}]")
    if index.numel() and not (int(index.min()) >= -1 and int(index.max()) < masks.shape[0]):
        raise ValueError(
            f"mask_index must lie in [-1, {masks.shape[0]}), got values from {int(index.min())} to {int(index.max())}"
        )
    index, masks = canonical_masks(index.to(col.device), (masks != 0).to(torch.uint8).to(col.device))
    return (index, masks) if masks.shape[0] else none


def check_structure(structure: Structure, shape: Sequence[int], block_shape: Sequence[int]) -> None:
    """Refuse arrays that no ``BlockPattern`` has: kernels trust them, and would read and write outside memory.

    Raises:
        ValueError, TypeError: an array is of another kind, out of range, or contradicts the others.
    """
    grid = grid_of(checked_pair("shape", shape, least=0), checked_pair("block_shape", block_shape, least=1))
    for name, part in zip(Structure._fields, structure, strict=True):
        dtype = torch.uint8 if name == "masks" else torch.int32
        if part.device != structure.crow_indices.device:
            raise ValueError(f"{name} must be on the device of crow_indices, got {part.device}")
        if part.layout != torch.strided or not part.is_contiguous():
            raise ValueError(f"{name} must be a contiguous dense tensor, got strides {list(part.stride())}")
        if part.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {part.dtype}")
    crow, col, *by_column, mask_index, masks = structure
    checked_indices(crow, col, grid)
    expected = Structure.from_rows(crow, col, grid[1], mask_index, masks)
    for name, part, same in zip(Structure._fields[2:5], by_column, expected[2:5], strict=True):
        if not torch.equal(part, same):
            raise ValueError(f"{name} must list the blocks of crow_indices and col_indices column by column")
    if masks.shape[0] or mask_index.numel():
        checked_masks(mask_index, masks, col, tuple(block_shape))
