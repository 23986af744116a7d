"""The weights of an embedded layer without forming W: a unit's row, its receptive field, and norms by distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.analysis.run_data import Floats
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.ties import OFF_LOCAL
from efcn_sparse.pattern import BlockPattern


def incoming_weights(values: Tensor, pattern: BlockPattern, unit: int) -> Tensor:
    """Row ``unit`` of W, taken from the blocks of its block row.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        unit: from 0 to ``out_features - 1``.

    Returns:
        ``[in_features]``, zero where nothing is stored.

    Law: ``incoming_weights(values, pattern, u)`` equals ``pattern.to_dense(values)[u]``.

    Raises:
        ValueError: ``unit`` is out of range, or ``values`` does not belong to ``pattern``.

    Example:
        >>> pattern = BlockPattern.from_bsr([0, 1, 1], [1], (4, 6), (2, 3))
        >>> incoming_weights(torch.ones(1, 2, 3), pattern, 1)
        tensor([0., 0., 0., 1., 1., 1.])
    """
    pattern.check_values(values)
    if not 0 <= unit < pattern.shape[0]:
        raise ValueError(f"unit must lie in [0, {pattern.shape[0]}), got {unit}")
    block_row, row = divmod(unit, pattern.block_shape[0])
    first, last = pattern.crow_indices[block_row : block_row + 2].tolist()
    stored = values.detach()[first:last, row]
    if pattern.masks.shape[0]:
        index = pattern.mask_index[first:last].to(torch.int64)
        counts = pattern.masks.bool()[index.clamp(min=0), row] | (index < 0)[:, None]
        stored = stored.masked_fill(~counts, 0)
    tiles = values.new_zeros((pattern.grid[1], pattern.block_shape[1]))
    tiles[pattern.col_indices[first:last].to(torch.int64)] = stored
    return tiles.flatten()[: pattern.shape[1]]


def receptive_field(geometry: ConvGeometry, pixel: Sequence[int]) -> list[tuple[int, int]]:
    """First and last input pixel that output ``pixel`` sees, for each dimension, padding left out.

    An output pixel that sees only padding has a last pixel below its first.

    Args:
        pixel: the output pixel's coordinates, one for each spatial dimension.
    """
    box = []
    for p, size, kernel, stride, (low, _), dilation in zip(
        pixel, geometry.input_size, geometry.kernel_size, geometry.stride, geometry.padding,
        geometry.dilation, strict=True,
    ):  # fmt: skip
        reach = (kernel - 1) * dilation
        first, last = p * stride - low, p * stride - low + reach
        if geometry.transposed:
            first, last = -(-(p + low - reach) // stride), (p + low) // stride
        box.append((max(first, 0), min(last, size - 1)))
    return box


def axis_distances(geometry: ConvGeometry) -> list[Tensor]:
    """int64 ``[output_size[d], input_size[d]]`` for each dimension d: pixels outside the receptive field's interval.

    The distance of two pixels is the largest of these over the dimensions (the measure of ``es.Dilated(radius)``);
    it is 0 inside the box that the receptive field spans, holes of a dilated kernel included.
    """
    if geometry.transposed:
        return [table.T for table in axis_distances(geometry.conv)]
    tables = []
    for out, size, kernel, stride, (low, _), dilation in zip(
        geometry.output_size, geometry.input_size, geometry.kernel_size, geometry.stride, geometry.padding,
        geometry.dilation, strict=True,
    ):  # fmt: skip
        first = (torch.arange(out) * stride - low)[:, None]
        last = first + (kernel - 1) * dilation
        at = torch.arange(size)[None, :]
        tables.append(torch.maximum(first - at, at - last).clamp(min=0))
    return tables


ELEMENTS_AT_ONCE = 1 << 22  # of values: bounds the memory of a profile


@dataclass(frozen=True)
class DistanceProfile:
    """Sums over one layer's off-local weights, by distance from the receptive field in input pixels.

    Attributes:
        squares: float64 ``[n]``: the sum of squares at distance 0, 1, …, n - 1.
        counts: float64 ``[n]``: how many off-local weights lie there.
        local_squares, local_count: the same two over all local weights.
    """

    squares: Floats
    counts: Floats
    local_squares: float
    local_count: float

    @property
    def norm(self) -> Floats:
        """The L2 norm at each distance; nan where the support has no weight."""
        return np.where(self.counts > 0, np.sqrt(self.squares), np.nan)

    @property
    def rms(self) -> Floats:
        """The root mean square weight at each distance; nan where the support has no weight."""
        return np.where(self.counts > 0, np.sqrt(self.squares / np.maximum(self.counts, 1)), np.nan)

    @property
    def local_rms(self) -> float:
        """The root mean square of the local weights."""
        return math.sqrt(self.local_squares / max(self.local_count, 1))


@torch.no_grad()
def distance_profile(layer: EmbeddedConv) -> DistanceProfile:
    """The :class:`DistanceProfile` of an embedded convolution, read off its stored blocks and its low-rank part.

    Law: the squares, ``local_squares`` included, sum to ‖W‖².
    """
    values, pattern, ties = layer.linear.values.detach(), layer.linear.pattern, layer.ties
    block_rows, block_cols = pattern.block_shape
    channels_out, channels_in = layer.geometry.out_channels, layer.geometry.in_channels
    # Rows of a block that share an output pixel share a distance, so squares are summed over them first.
    same_out, same_in = math.gcd(block_rows, channels_out), math.gcd(block_cols, channels_in)
    out_axes = _coordinates(
        (pattern.grid[0], block_rows // same_out), same_out, channels_out, layer.geometry.output_size
    )
    in_axes = _coordinates((pattern.grid[1], block_cols // same_in), same_in, channels_in, layer.geometry.input_size)
    tables = axis_distances(layer.geometry)
    off_local, local = ties.maps == OFF_LOCAL, ties.maps >= 0
    rows = pattern.rows_of_blocks().to(torch.int64)
    cols, classes = pattern.col_indices.to(torch.int64), ties.class_of_block.to(torch.int64)
    longest = 1 + max((int(table.max()) for table in tables if table.numel()), default=0)
    squares, counts = torch.zeros(longest, dtype=torch.float64), torch.zeros(longest, dtype=torch.float64)
    local_squares = local_count = 0.0
    tiled = (-1, block_rows // same_out, same_out, block_cols // same_in, same_in)
    per_off = off_local.view(tiled).sum((2, 4)).double()
    per_local = local.sum((1, 2)).double()
    step = max(1, ELEMENTS_AT_ONCE // (block_rows * block_cols))
    for start in range(0, pattern.nnz_blocks, step):
        chunk = slice(start, start + step)
        of_class = classes[chunk]
        squared = values[chunk].double().square()
        local_squares += float((squared * local[of_class]).sum())
        local_count += float(per_local[of_class].sum())
        weight = (squared * off_local[of_class]).view(tiled).sum((2, 4))
        distance = torch.zeros(weight.shape, dtype=torch.int64)
        for table, out_axis, in_axis in zip(tables, out_axes, in_axes, strict=True):
            p, q = out_axis[rows[chunk]], in_axis[cols[chunk]]
            distance = torch.maximum(distance, table[p[:, :, None], q[:, None, :]])
        squares += torch.bincount(distance.flatten(), weight.flatten(), longest)
        counts += torch.bincount(distance.flatten(), per_off[of_class].flatten(), longest)
    if layer.low_rank is not None:
        _add_low_rank(layer, tables, squares, counts)
    return DistanceProfile(squares.numpy(), counts.numpy(), local_squares, local_count)


def _add_low_rank(layer: EmbeddedConv, tables: list[Tensor], squares: Tensor, counts: Tensor) -> None:
    """Add what ``U Vᵀ`` has outside the stored entries, one output pixel at a time."""
    assert layer.low_rank is not None
    geometry, channels = layer.geometry, layer.geometry.out_channels
    right, outside = layer.low_rank.right.detach().double().T, ~layer.linear.pattern.to_mask()
    inputs = torch.unravel_index(torch.arange(geometry.in_features) // geometry.in_channels, geometry.input_size)
    for number, left in enumerate(layer.low_rank.left.detach().double().split(channels)):
        pixel = np.unravel_index(number, geometry.output_size)
        reached = [table[p, q] for table, p, q in zip(tables, pixel, inputs, strict=True)]
        distance = torch.stack(reached).amax(0)
        rows = outside[number * channels : (number + 1) * channels]
        squares += torch.bincount(distance, ((left @ right).square() * rows).sum(0), len(squares))
        counts += torch.bincount(distance, rows.sum(0).double(), len(counts))


def _coordinates(groups: tuple[int, int], size: int, channels: int, pixels: tuple[int, ...]) -> list[Tensor]:
    """For each dimension, where every group of ``size`` features lies: int64 ``[blocks, groups of a block]``."""
    pixel = torch.arange(groups[0] * groups[1]) * size // channels
    pixel = pixel.clamp(max=math.prod(pixels) - 1)  # groups past the matrix edge carry no weight
    return [axis.view(groups) for axis in torch.unravel_index(pixel, pixels)]
