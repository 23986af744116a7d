"""Which blocks of a weight matrix are stored: structure only, no numbers."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.pattern.checks import (
    checked_density,
    checked_indices,
    checked_mask,
    checked_masks,
    checked_pair,
    checked_positions,
    index_device,
    parts_of_bsr,
)
from efcn_sparse.pattern.sources import blocks_of_mask, cover_at_random, draw_blocks, unique_masks
from efcn_sparse.pattern.structure import Structure, grid_of


class BlockPattern:
    """The stored blocks of a ``[out_features, in_features]`` matrix W, and which of their entries count.

    A pattern is immutable and compares by content. Blocks are sorted by row, then column, so block k of a pattern
    is ``values[k]`` in every ``values`` tensor of shape ``[nnz_blocks, block_rows, block_cols]`` that belongs to it.
    Sides that are no multiple of the block are allowed: entries past the edge are never read and have zero gradient.
    A stored block may be only partly inside the support; ``mask_index[k]`` then names its mask in ``masks``
    (-1: the whole block counts). Each reading of an index array gives a copy.

    Attributes:
        shape: ``(out_features, in_features)``.
        block_shape: ``(block_rows, block_cols)``.
        grid: number of block rows and block columns.
        nnz_blocks: number of stored blocks.
        values_shape: the shape of a ``values`` tensor of this pattern.
        device: where the index arrays lie.
        crow_indices, col_indices: int32 ``[grid[0] + 1]`` and ``[nnz_blocks]``: the blocks row by row, named as in
            :func:`torch.sparse_bsr_tensor`.
        ccol_indices, row_indices: int32 ``[grid[1] + 1]`` and ``[nnz_blocks]``: the blocks column by column.
        block_order: int32 ``[nnz_blocks]``: where in ``values`` the k-th block of the column-wise order lies.
        mask_index: int32 ``[nnz_blocks]``, or ``[0]`` when no block is masked.
        masks: uint8 ``[n_masks, block_rows, block_cols]``: 1 where an entry counts.
        structure: the seven arrays themselves, for the registered operators; not to be written to.

    Law: ``p.to_mask()`` is the support, and ``BlockPattern.from_mask(p.to_mask(), p.block_shape)`` has the same one.

    Example:
        >>> import torch
        >>> from efcn_sparse import BlockPattern
        >>> p = BlockPattern.from_bsr(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]), (4, 6), (2, 3))
        >>> p
        BlockPattern(shape=(4, 6), block_shape=(2, 3), nnz_blocks=3, density=0.75, device=cpu)
        >>> p.to_mask().int()
        tensor([[0, 0, 0, 1, 1, 1],
                [0, 0, 0, 1, 1, 1],
                [1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    """

    shape: tuple[int, int]
    block_shape: tuple[int, int]
    grid: tuple[int, int]
    nnz_blocks: int
    values_shape: tuple[int, int, int]
    device: torch.device
    structure: Structure
    _named: tuple[tuple[int, ...], str] = (), ""  # versions of the arrays, and their fingerprint

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError("BlockPattern is made by from_bsr, from_mask, from_blocks, dense or random, not by calling it")

    # -- construction ------------------------------------------------------------------------------------------

    @classmethod
    def from_bsr(
        cls,
        crow_indices: Tensor | Sequence[int],
        col_indices: Tensor | Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        block_shape: Sequence[int] | None = None,
        *,
        mask_index: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> BlockPattern:
        """A pattern from block-compressed row indices, or that of a sparse BSR matrix of torch.

        Args:
            crow_indices: integers ``[ceil(out / block_rows) + 1]``, from 0 up to the number of blocks; or alone a
                two-dimensional tensor of layout :obj:`torch.sparse_bsr`.
            col_indices: integers ``[nnz_blocks]``, strictly increasing within each row.
            shape: ``(out_features, in_features)`` of W, in entries.
            block_shape: ``(block_rows, block_cols)``, in entries.
            mask_index: integers ``[nnz_blocks]``: the row of ``masks`` that applies to each block, -1 for none.
            masks: bool or uint8 ``[n_masks, block_rows, block_cols]``: true where an entry counts.

        Raises:
            ValueError: an index is out of range, unsorted or repeated, or a shape does not fit.
            TypeError: an index array does not hold integers, or is missing.

        Example:
            >>> BlockPattern.from_bsr(torch.eye(4).to_sparse_bsr((2, 2))).nnz_blocks
            2
        """
        if isinstance(crow_indices, Tensor) and crow_indices.layout == torch.sparse_bsr:
            if not (col_indices is shape is block_shape is None):
                raise TypeError("crow_indices must be given alone where it is a sparse BSR tensor")
            crow_indices, col_indices, shape, block_shape = parts_of_bsr(crow_indices)
        if col_indices is None or shape is None or block_shape is None:
            raise TypeError("col_indices, shape and block_shape must be given, unless the first is a sparse BSR tensor")
        shape, block_shape = _checked_shapes(shape, block_shape)
        grid = grid_of(shape, block_shape)
        with torch.inference_mode(False):  # autograd could not save inference tensors
            crow, col = checked_indices(crow_indices, col_indices, grid)
            mask_index, masks = checked_masks(mask_index, masks, col, block_shape)
            return cls._make(shape, block_shape, Structure.from_rows(crow, col, grid[1], mask_index, masks))

    @classmethod
    def _make(cls, shape: tuple[int, int], block_shape: tuple[int, int], structure: Structure) -> BlockPattern:
        self = object.__new__(cls)
        self.__dict__.update(
            shape=shape, block_shape=block_shape, grid=grid_of(shape, block_shape), structure=structure,
            nnz_blocks=structure.col_indices.numel(), device=structure.crow_indices.device,
            values_shape=(structure.col_indices.numel(), *block_shape),
        )  # fmt: skip
        return self

    @classmethod
    def from_blocks(cls, rows: Tensor, cols: Tensor, shape: Sequence[int], block_shape: Sequence[int]) -> BlockPattern:
        """A pattern from the (row, column) positions of its blocks, in any order, repeats allowed.

        Example:
            >>> BlockPattern.from_blocks(torch.tensor([1, 0]), torch.tensor([0, 2]), (4, 6), (2, 2)).col_indices
            tensor([2, 0], dtype=torch.int32)
        """
        shape, block_shape = _checked_shapes(shape, block_shape)
        grid = grid_of(shape, block_shape)
        rows, cols = checked_positions(rows, cols, grid)
        flat = torch.unique(rows * grid[1] + cols)
        rows = flat // max(grid[1], 1)
        crow = torch.zeros(grid[0] + 1, dtype=torch.int64, device=flat.device)
        crow[1:] = torch.bincount(rows, minlength=grid[0]).cumsum(0)
        return cls.from_bsr(crow, flat % max(grid[1], 1), shape, block_shape)

    @classmethod
    def from_mask(
        cls, mask: Tensor | np.ndarray, block_shape: Sequence[int], *, shape: Sequence[int] | None = None
    ) -> BlockPattern:
        """A pattern from a mask of entries, or with ``shape`` from a mask of blocks.

        Args:
            mask: bool ``[out_features, in_features]``, of torch or NumPy; with ``shape`` given, bool
                ``[block rows, block columns]``. A block is stored if any of its entries is true, and entries
                that are false stay out of the support.
            block_shape: ``(block_rows, block_cols)``.
            shape: ``(out_features, in_features)``, to say that ``mask`` is a mask of blocks.

        Example:
            >>> BlockPattern.from_mask(torch.eye(4, dtype=torch.bool), (2, 2)).nnz_blocks
            2
            >>> BlockPattern.from_mask(torch.tensor([[True, False]]), (8, 8), shape=(8, 16)).density
            0.5
        """
        mask = checked_mask(mask)
        block_shape = checked_pair("block_shape", block_shape, least=1)
        if shape is not None:
            shape = checked_pair("shape", shape, least=0)
            grid = grid_of(shape, block_shape)
            if tuple(mask.shape) != grid:
                raise ValueError(
                    f"mask must be {list(grid)} for shape {shape} in blocks {block_shape}, got {list(mask.shape)}"
                )
            row, col = mask.nonzero(as_tuple=True)
            return cls.from_blocks(row, col, shape, block_shape)
        shape = (mask.shape[0], mask.shape[1])
        rows, cols, entries = blocks_of_mask(mask, block_shape)
        bare = cls.from_blocks(rows, cols, shape, block_shape)
        index, masks = unique_masks(entries, bare.structure.inside(shape, block_shape))
        return cls.from_bsr(*bare.structure[:2], shape, block_shape, mask_index=index, masks=masks)

    @classmethod
    def dense(
        cls, shape: Sequence[int], block_shape: Sequence[int], device: torch.device | str | None = None
    ) -> BlockPattern:
        """A pattern that stores every block.

        Example:
            >>> BlockPattern.dense((4, 6), (2, 2)).nnz_blocks
            6
        """
        shape, block_shape = _checked_shapes(shape, block_shape)
        grid = grid_of(shape, block_shape)
        device = index_device(device)
        crow = torch.arange(grid[0] + 1, device=device) * grid[1]
        return cls.from_bsr(crow, torch.arange(grid[1], device=device).repeat(grid[0]), shape, block_shape)

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        block_shape: Sequence[int],
        density: float,
        generator: torch.Generator | None = None,
        *,
        cover: bool = True,
    ) -> BlockPattern:
        """A pattern of ``round(density * number of blocks)`` blocks, drawn uniformly without repetition.

        Args:
            density: the share of blocks to store.
            generator: what to draw with.
            cover: see that no block row or block column is without a block, for then outputs would be constant and
                inputs unread: where the draw left some out, blocks of others move there, and where there are too few
                blocks, more are stored, up to ``max(grid)``. A density of 0 stores none.

        Example:
            >>> BlockPattern.random((64, 64), (8, 8), 0.25, torch.Generator().manual_seed(0)).nnz_blocks
            16
        """
        shape, block_shape = _checked_shapes(shape, block_shape)
        density = checked_density(density)
        grid = grid_of(shape, block_shape)
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise TypeError(f"generator must be a torch.Generator or None, got {generator!r}")
        device = index_device() if generator is None else generator.device
        flat = draw_blocks(grid[0] * grid[1], density, generator, device)
        if cover and density > 0:
            flat = cover_at_random(flat, grid, generator)
        return cls.from_blocks(flat // max(grid[1], 1), flat % max(grid[1], 1), shape, block_shape)

    # -- facts -------------------------------------------------------------------------------------------------

    @property
    def crow_indices(self) -> Tensor:
        return self.structure.crow_indices.clone()

    @property
    def col_indices(self) -> Tensor:
        return self.structure.col_indices.clone()

    @property
    def ccol_indices(self) -> Tensor:
        return self.structure.ccol_indices.clone()

    @property
    def row_indices(self) -> Tensor:
        return self.structure.row_indices.clone()

    @property
    def block_order(self) -> Tensor:
        return self.structure.block_order.clone()

    @property
    def mask_index(self) -> Tensor:
        return self.structure.mask_index.clone()

    @property
    def masks(self) -> Tensor:
        return self.structure.masks.clone()

    @property
    def density(self) -> float:
        """Stored blocks over all blocks; 0.0 for a matrix without blocks."""
        total = self.grid[0] * self.grid[1]
        return self.nnz_blocks / total if total else 0.0

    @property
    def is_ragged(self) -> bool:
        """Whether a side of W is no multiple of the block."""
        return self.shape[0] % self.block_shape[0] != 0 or self.shape[1] % self.block_shape[1] != 0

    @property
    def nnz(self) -> int:
        """How many entries of W are in the support."""
        masks = self.structure.masks
        if not self.is_ragged and masks.shape[0] == 0:
            return self.nnz_blocks * self.block_shape[0] * self.block_shape[1]
        heights, widths = self.block_extents()
        full = heights * widths
        if masks.shape[0] == 0:
            return int(full.sum())
        inside = masks.cumsum(1, dtype=torch.int64).cumsum(2)  # [m, h - 1, w - 1]: mask m's entries in h x w
        index = self.structure.mask_index.to(torch.int64)
        return int(torch.where(index < 0, full, inside[index.clamp(min=0), heights - 1, widths - 1]).sum())

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that name the content: equal patterns share them on every device."""
        versions = tuple([part._version for part in self.structure])
        if self._named[0] != versions:
            content = hashlib.sha256(repr((self.shape, self.block_shape)).encode())
            crow, col, _, _, _, mask_index, masks = self.structure
            for part in (crow, col, mask_index, masks):
                content.update(repr(tuple(part.shape)).encode())
                content.update(part.contiguous().cpu().numpy().tobytes())
            self.__dict__["_named"] = versions, content.hexdigest()[:32]
        return self._named[1]

    def rows_of_blocks(self) -> Tensor:
        """int32 ``[nnz_blocks]``: the block row of each stored block, in the order of ``values``."""
        return self.structure.rows_of_blocks()

    def block_extents(self) -> tuple[Tensor, Tensor]:
        """int64 ``[nnz_blocks]`` twice: how many rows and columns of each block lie inside the matrix."""
        return self.structure.extents(self.shape, self.block_shape)

    def support_of_blocks(self) -> Tensor | None:
        """bool ``[nnz_blocks, block_rows, block_cols]``: stored entries in the support; None if all of them are."""
        return self.structure.support(self.shape, self.block_shape)

    def masked(self, values: Tensor) -> Tensor:
        """``values`` with zeros outside the support; itself where all stored entries are inside. Differentiable."""
        support = self.support_of_blocks()
        return values if support is None else values.masked_fill(~support.to(values.device), 0)

    # -- conversion --------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str) -> BlockPattern:
        """This pattern with its index arrays on ``device``; itself if they are there already.

        A pattern has no meta form (structure is what it is), so ``to("meta")`` returns it unchanged.
        """
        target = torch.device(device)
        if target.type == "meta" or target == self.device:
            return self
        with torch.inference_mode(False):
            moved = Structure(*(part.to(target) for part in self.structure))
        return BlockPattern._make(self.shape, self.block_shape, moved)

    def to_mask(self) -> Tensor:
        """bool ``[out_features, in_features]``: the support."""
        ones = torch.ones(self.values_shape, dtype=torch.uint8, device=self.device)
        return self.to_dense(ones).bool()

    def to_dense(self, values: Tensor) -> Tensor:
        """``[out_features, in_features]``: W, with zeros outside the support. Differentiable.

        Args:
            values: ``[nnz_blocks, block_rows, block_cols]``.
        """
        self.check_values(values)
        (block_rows, block_cols), (rows, cols) = self.block_shape, self.grid
        dense = values.new_zeros((rows * block_rows, cols * block_cols))
        places = (index.to(values.device, torch.int64) for index in (self.rows_of_blocks(), self.col_indices))
        tiles = dense.view(rows, block_rows, cols, block_cols).transpose(1, 2)
        tiles.index_put_(tuple(places), self.masked(values))
        return dense[: self.shape[0], : self.shape[1]].contiguous()

    def gather(self, dense: Tensor) -> Tensor:
        """The values of ``dense`` at the stored blocks, zero outside the support: the adjoint of :meth:`to_dense`.

        Args:
            dense: ``[out_features, in_features]``.

        Returns:
            ``[nnz_blocks, block_rows, block_cols]``.
        """
        if tuple(dense.shape) != self.shape:
            raise ValueError(f"dense must be {list(self.shape)}, got {list(dense.shape)}")
        (block_rows, block_cols), (rows, cols) = self.block_shape, self.grid
        padding = (0, cols * block_cols - self.shape[1], 0, rows * block_rows - self.shape[0])
        tiles = torch.nn.functional.pad(dense, padding).view(rows, block_rows, cols, block_cols).transpose(1, 2)
        values = tiles[
            self.rows_of_blocks().to(dense.device, torch.int64), self.col_indices.to(dense.device, torch.int64)
        ]
        return self.masked(values)

    def transposed(self) -> BlockPattern:
        """The pattern of Wᵀ; its values are ``values[block_order].transpose(1, 2)``.

        Law: ``p.transposed().transposed() == p``.
        """
        _, _, ccol, row, order, mask_index, masks = self.structure
        if mask_index.numel():
            mask_index = mask_index[order.to(torch.int64)]
        return BlockPattern.from_bsr(
            ccol, row, self.shape[::-1], self.block_shape[::-1], mask_index=mask_index, masks=masks.transpose(1, 2)
        )

    def check_values(self, values: Tensor) -> None:
        """Raise ``ValueError`` unless ``values`` has this pattern's shape."""
        if tuple(values.shape) != self.values_shape:
            raise ValueError(f"values must be {list(self.values_shape)}, got {list(values.shape)}")

    # -- Python protocol ---------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"BlockPattern is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"BlockPattern is immutable: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockPattern):
            return NotImplemented
        return self is other or self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __copy__(self) -> BlockPattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> BlockPattern:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        s = self.structure  # not copies: a spawned process would get the descriptor of one that is gone by then
        parts = (s.crow_indices, s.col_indices, s.mask_index, s.masks)
        return _rebuild, (self.shape, self.block_shape, parts)

    def __fx_create_arg__(self, tracer: Any) -> Any:
        """Become an attribute of the module that :mod:`torch.fx` traces, which takes no other objects as arguments."""
        names = (f"_block_pattern{k}" for k in itertools.count())
        name = next(name for name in names if getattr(tracer.root, name, self) is self)
        setattr(tracer.root, name, self)
        return tracer.create_node("get_attr", name, (), {})

    def __repr__(self) -> str:
        masked = int((self.structure.mask_index >= 0).sum())
        return (
            f"BlockPattern(shape={self.shape}, block_shape={self.block_shape}, nnz_blocks={self.nnz_blocks}, "
            f"density={self.density:.4g}{f', masked_blocks={masked}' if masked else ''}, device={self.device})"
        )


def _checked_shapes(shape: Sequence[int], block_shape: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return checked_pair("shape", shape, least=0), checked_pair("block_shape", block_shape, least=1)


def _rebuild(shape, block_shape, parts) -> BlockPattern:
    crow, col, mask_index, masks = parts
    return BlockPattern.from_bsr(crow, col, shape, block_shape, mask_index=mask_index, masks=masks)
