"""Which blocks of W a support touches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.support import Support

_CHUNK_CANDIDATES = 1 << 19


def covered_blocks(
    geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], block_rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(rows, cols)`` of the blocks with at least one entry in ``support.touching``, sorted by row, then column.

    Args:
        block_rows: int64: look at these block rows only, in ascending order.

    Returns:
        int64 ``[n]`` twice.
    """
    grid, support = grid_of(geometry, block_shape), support.touching
    wanted = torch.arange(grid[0], device="cpu") if block_rows is None else block_rows
    if support.stores_all:
        return wanted.repeat_interleave(grid[1]), torch.arange(grid[1], device="cpu").repeat(wanted.numel())
    found = list(_covered(geometry, support, block_shape, wanted))
    blocks = torch.cat(found) if found else wanted
    return blocks // grid[1], blocks % grid[1]


def count_stored(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> int:
    """How many blocks are stored for the support."""
    grid, touching = grid_of(geometry, block_shape), support.touching
    if touching.stores_all:
        return grid[0] * grid[1]
    wanted = torch.arange(grid[0], device="cpu")
    touched = sum(blocks.numel() for blocks in _covered(geometry, touching, block_shape, wanted))
    return support.most_blocks(touched, grid[0] * grid[1])


def grid_of(geometry: ConvGeometry, block_shape: tuple[int, int]) -> tuple[int, int]:
    """Number of block rows and block columns of W."""
    return -(-geometry.out_features // block_shape[0]), -(-geometry.in_features // block_shape[1])


def _covered(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], rows: Tensor) -> Iterator[Tensor]:
    """The covered blocks as ``row * grid columns + column``, ascending, a bounded number of block rows at a time."""
    windows = [support.window(geometry, dim) for dim in range(len(geometry.input_size))]
    segments = (block_shape[0] - 1) // geometry.out_channels + 2
    spans = math.prod(len(window) for window in windows) * (geometry.in_channels // block_shape[1] + 2)
    chunk = max(1, _CHUNK_CANDIDATES // (segments * max(1, spans)))
    columns = grid_of(geometry, block_shape)[1]
    with torch.device("cpu"):  # structure is built there, whatever the default device is
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
