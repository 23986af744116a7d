"""Which blocks of W a layer stores, and of what shape."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import numpy
import torch
from torch import Tensor

from efcn_sparse.default_device import on_cpu
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.support import Support
from efcn_sparse.pattern.structure import grid_of

_CHUNK_CANDIDATES = 1 << 19
# Share of the full rate at which a kernel runs whose narrower side has this many entries; linear in log2 between.
_EFFICIENCY = {1: 0.05, 2: 0.1, 4: 0.2, 8: 0.35, 16: 0.6, 32: 0.85, 64: 1.0}
_PER_BLOCK, _PER_BLOCK_ROW = 64, 1.0  # cost of one more block, and of each of its rows, in multiplications
_MEMORY = 1.0  # cost of holding and updating one weight, in multiplications of it at the full rate
_LARGEST = 128
_SAMPLED_ROWS = 48


def covered_blocks(
    geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], block_rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(rows, cols)`` of the blocks with at least one entry in ``support.touching``, sorted by row, then column.

    Args:
        block_rows: int64: look at these block rows only, in ascending order.

    Returns:
        int64 ``[n]`` twice.
    """
    if geometry.transposed:
        return _transposed(*covered_blocks(geometry.conv, support, block_shape[::-1]), block_rows)
    grid, support = grid_of(geometry.shape, block_shape), support.touching
    wanted = torch.arange(grid[0], device="cpu") if block_rows is None else block_rows
    if support.stores_all:
        return wanted.repeat_interleave(grid[1]), torch.arange(grid[1], device="cpu").repeat(wanted.numel())
    found = list(_covered(geometry, support, block_shape, wanted))
    blocks = torch.cat(found) if found else wanted
    return blocks // grid[1], blocks % grid[1]


def count_stored(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> int:
    """How many blocks are stored for the support."""
    if geometry.transposed:
        return count_stored(geometry.conv, support, block_shape[::-1])
    grid, touching = grid_of(geometry.shape, block_shape), support.touching
    if touching.stores_all:
        return grid[0] * grid[1]
    wanted = torch.arange(grid[0], device="cpu")
    touched = sum(blocks.numel() for blocks in _covered(geometry, touching, block_shape, wanted))
    return support.most_blocks(touched, grid[0] * grid[1])


def _transposed(cols: Tensor, rows: Tensor, block_rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The blocks of the transpose, those in ``block_rows``, sorted by row, then column."""
    if block_rows is not None:
        wanted = torch.isin(rows, block_rows)
        rows, cols = rows[wanted], cols[wanted]
    order = torch.argsort(rows, stable=True)  # columns ascend already
    return rows[order], cols[order]


def _covered(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], rows: Tensor) -> Iterator[Tensor]:
    """The covered blocks as ``row * grid columns + column``, ascending, a bounded number of block rows at a time."""
    windows = [support.window(geometry, dim) for dim in range(len(geometry.input_size))]
    segments = (block_shape[0] - 1) // geometry.out_channels + 2
    spans = math.prod(len(window) for window in windows) * (geometry.in_channels // block_shape[1] + 2)
    chunk = max(1, _CHUNK_CANDIDATES // (segments * max(1, spans)))
    columns = grid_of(geometry.shape, block_shape)[1]
    with on_cpu():
        for part in rows.split(chunk):
            yield _covered_by(part, geometry, support, windows, block_shape, columns)


def _covered_by(
    rows: Tensor,
    geometry: ConvGeometry,
    support: Support,
    windows: list[range],
    block_shape: tuple[int, int],
    grid_cols: int,
) -> Tensor:
    """``row * grid_cols + col`` of the covered blocks in these block rows, ascending."""
    row, pixel, first_channel, last_channel = _row_segments(rows, geometry, block_shape[0])
    narrow = support.within_groups and geometry.groups > 1
    if narrow:
        group_out, group_in = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
        first_channel = first_channel // group_out * group_in
        last_channel = (last_channel // group_out + 1) * group_in - 1
    else:
        first_channel, last_channel = (
            torch.zeros_like(first_channel),
            torch.full_like(last_channel, geometry.in_channels - 1),
        )
    # Input pixels are enumerated over all dimensions but the last, along which a window without holes is one run.
    coordinates = unravel(pixel, geometry.output_size)
    line = torch.zeros((row.numel(), 1), dtype=torch.int64)
    inside = torch.ones((row.numel(), 1), dtype=torch.bool)
    for dim, (window, size) in enumerate(zip(windows, geometry.input_size, strict=True)):
        origin = (coordinates[dim] * geometry.stride[dim] - geometry.padding[dim][0])[:, None]
        if dim == len(windows) - 1 and window.step == 1 and not narrow:
            low, high = (origin + window.start).clamp(min=0), (origin + window.stop - 1).clamp(max=size - 1)
            inside = inside & (low <= high)
            first, last = line * size + low, line * size + high
            break
        at = origin + torch.tensor(list(window), dtype=torch.int64)
        line = (line[:, :, None] * size + at[:, None, :]).flatten(1)
        inside = (inside[:, :, None] & ((at >= 0) & (at < size))[:, None, :]).flatten(1)
        first = last = line
    first = (first * geometry.in_channels + first_channel[:, None])[inside] // block_shape[1]
    last = (last * geometry.in_channels + last_channel[:, None])[inside] // block_shape[1]
    start = row[:, None].expand_as(inside)[inside] * grid_cols + first
    lengths = last - first + 1
    begin = lengths.cumsum(0) - lengths
    blocks = torch.arange(int(lengths.sum())) + (start - begin).repeat_interleave(lengths)
    return torch.unique(blocks)


def _row_segments(rows: Tensor, geometry: ConvGeometry, block_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Block row, output pixel, first and last channel of every piece of a pixel that lies in these block rows."""
    channels = geometry.out_channels
    first = rows * block_rows
    last = (first + block_rows).clamp(max=geometry.out_features) - 1
    slots = (block_rows - 1) // channels + 2
    pixel = (first // channels)[:, None] + torch.arange(slots)
    used = pixel * channels <= last[:, None]
    first_channel = (first[:, None] - pixel * channels).clamp(min=0)
    last_channel = (last[:, None] - pixel * channels).clamp(max=channels - 1)
    return rows[:, None].expand_as(pixel)[used], pixel[used], first_channel[used], last_channel[used]


def unravel(index: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """Row-major coordinates of flat pixel numbers."""
    coordinates = []
    for side in reversed(size):
        coordinates.append(index % side)
        index = index // side
    return coordinates[::-1]


def with_spread_blocks(stored: Tensor, more: int, total: int) -> Tensor:
    """``stored`` and ``more`` other blocks, drawn evenly from all the others, always the same.

    Memory and work grow with the number of blocks that are stored, not with ``total``.

    Args:
        stored: int64 ``[n]``: numbers of blocks in ``[0, total)``, ascending.

    Returns:
        int64 ``[n + more]``, ascending.

    Example:
        >>> with_spread_blocks(torch.tensor([0, 2, 3]), more=2, total=5)
        tensor([0, 1, 2, 3, 4])
    """
    free = total - stored.numel()
    drawn = numpy.random.Generator(numpy.random.PCG64(0)).choice(free, size=more, replace=False, shuffle=False)
    ranks = torch.from_numpy(numpy.sort(drawn).astype(numpy.int64))
    before = torch.searchsorted(
        stored - torch.arange(stored.numel()), ranks, right=True
    )  # stored ones in front of each
    return torch.cat([stored, ranks + before]).sort().values


@functools.lru_cache(maxsize=1024)
def choose_block_shape(geometry: ConvGeometry, support: Support) -> tuple[int, int]:
    """The cheapest of the block shapes that fit the layer's channels.

    A row of consecutive blocks is multiplied in one go, so narrow blocks that cover the receptive field exactly beat
    wide ones that waste entries.

    Example:
        >>> from efcn_sparse.embedding.support import Local
        >>> rgb = ConvGeometry(3, 64, 1, (32, 32), (4, 4), (2, 2), ((2, 2), (2, 2)), (1, 1))
        >>> choose_block_shape(rgb, Local())
        (64, 6)
    """
    groups = geometry.groups if support.within_groups else 1
    heights = _sides(geometry.out_channels, groups, geometry.out_features)
    widths = _sides(geometry.in_channels, groups, geometry.in_features)
    candidates = [(height, width) for height in heights for width in widths]
    if len(candidates) == 1:
        return candidates[0]
    return min(candidates, key=lambda shape: (_cost(geometry, support, shape), -shape[0] * shape[1], shape))


def _sides(channels: int, groups: int, features: int) -> list[int]:
    """Sides that divide a pixel's channels, or span whole pixels."""
    per_group = channels // groups
    if groups == 1 and channels % 64 == 0:
        return [_LARGEST if channels % _LARGEST == 0 and channels > _LARGEST else 64]
    within = [side for side in range(1, min(channels, _LARGEST) + 1) if channels % side == 0]
    if groups == 1:
        wide = [side for side in within if side >= min(per_group, 16)]
        if not wide and channels <= 4 * _LARGEST:
            wide = [channels]
        within = wide or [64]
    pixels = features // channels
    across = [channels * n for n in (2, 3, 4, 6, 8, 12, 16, 32, 64) if n <= pixels and channels * n <= _LARGEST]
    return within + across


def _cost(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> float:
    """Cost of one pass over the layer, in multiplications at the full rate, from a sample of its block rows."""
    total = grid_of(geometry.shape, block_shape)[0]
    samples = 1 if support.stores_all else min(total, _SAMPLED_ROWS)
    sampled = torch.linspace(0, total - 1, samples, dtype=torch.float64, device="cpu").long()
    rows, cols = covered_blocks(geometry, support, block_shape, sampled)
    blocks = max(1, rows.numel())
    runs = 1 + int(((rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1] + 1)).sum())
    narrower = min(block_shape[0], blocks / runs * block_shape[1])
    weights = block_shape[0] * block_shape[1] * (1 / _efficiency(narrower) + _MEMORY)
    return blocks * (weights + _PER_BLOCK + _PER_BLOCK_ROW * block_shape[0]) * total / sampled.numel()


def _efficiency(side: float) -> float:
    sides = list(_EFFICIENCY)
    for low, high in itertools.pairwise(sides):
        if side < high:
            share = math.log2(side / low)
            return _EFFICIENCY[low] * (1 - share) + _EFFICIENCY[high] * share
    return _EFFICIENCY[sides[-1]]
