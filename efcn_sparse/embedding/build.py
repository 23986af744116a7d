"""The pattern and the ties of a convolution's fully-connected twin."""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from efcn_sparse.default_device import on_cpu
from efcn_sparse.embedding.blocks import covered_blocks, unravel, with_spread_blocks
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.support import Support
from efcn_sparse.embedding.ties import OFF_LOCAL, OUTSIDE, Ties
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.pattern.sources import unique_masks
from efcn_sparse.pattern.structure import grid_of

_CHUNK_ELEMENTS = 1 << 18


def build(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> tuple[BlockPattern, Ties]:
    """The pattern of ``support`` in blocks of ``block_shape``, and which kernel entry each stored weight copies.

    Work grows with the number of stored blocks and with the size of the kernel, never with W.

    Law: ``pattern == BlockPattern.from_mask(mask of the support, block_shape)``, but for :class:`Grown`, whose blocks
    are whole.

    Example:
        >>> from efcn_sparse.embedding.support import Local
        >>> g = ConvGeometry(1, 1, 1, (4,), (3,), (1,), ((1, 1),), (1,))
        >>> pattern, ties = build(g, Local(), (1, 1))
        >>> pattern.nnz, ties.counts
        (10, tensor([3, 4, 3]))
    """
    with on_cpu():
        rows, cols = _stored_blocks(geometry, support, block_shape)
        classes, maps = classify(geometry, support, block_shape, rows, cols)
        shape = geometry.shape
        crow = torch.zeros(grid_of(shape, block_shape)[0] + 1, dtype=torch.int64)
        crow[1:] = torch.bincount(rows, minlength=crow.numel() - 1).cumsum(0)
        mask_index, masks = _masks(shape, block_shape, rows, cols, classes, maps)
        pattern = BlockPattern.from_bsr(crow, cols, shape, block_shape, mask_index=mask_index, masks=masks)
        return pattern, Ties.of_classes(geometry.kernel_shape, classes, maps)


def _stored_blocks(geometry: ConvGeometry, support: Support, block_shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``(rows, cols)`` of the blocks to store, sorted by row, then column."""
    rows, cols = covered_blocks(geometry, support, block_shape)
    grid = grid_of(geometry.shape, block_shape)
    more = support.most_blocks(rows.numel(), grid[0] * grid[1]) - rows.numel()
    if more == 0:
        return rows, cols
    blocks = with_spread_blocks(rows * grid[1] + cols, more, grid[0] * grid[1])
    return blocks // grid[1], blocks % grid[1]


def _masks(
    shape: tuple[int, int], block_shape: tuple[int, int], rows: Tensor, cols: Tensor, classes: Tensor, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """``(mask_index, masks)`` of the blocks with an entry inside the matrix and outside the support."""
    height = (shape[0] - rows * block_shape[0]).clamp(max=block_shape[0])
    width = (shape[1] - cols * block_shape[1]).clamp(max=block_shape[1])
    missing = torch.stack([(entries == OUTSIDE).sum() for entries in maps]) if maps.shape[0] else maps.new_empty(0)
    partial = missing[classes] > block_shape[0] * block_shape[1] - height * width
    used = torch.unique(classes[partial])
    mask_of_used, masks = unique_masks(maps[used] != OUTSIDE, None)
    mask_of_class = torch.full((maps.shape[0],), -1, dtype=torch.int32)
    mask_of_class[used] = mask_of_used if mask_of_used.numel() else -1
    return torch.where(partial, mask_of_class[classes], -1), masks


def classify(
    geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], rows: Tensor, cols: Tensor
) -> tuple[Tensor, Tensor]:
    """``(class_of_block, maps)`` of the blocks at ``(rows, cols)``, as :class:`Ties` holds them.

    Args:
        rows, cols: int64 ``[n]``: block coordinates.

    Returns:
        int64 ``[n]`` and int32 ``[n_classes, block_rows, block_cols]``.
    """
    if geometry.transposed:
        classes, maps = classify(geometry.conv, support, block_shape[::-1], cols, rows)
        return classes, maps.mT.contiguous()
    support = support.within
    likeness = _pixel_keys(geometry, support, block_shape, rows, cols)
    _, like = torch.unique(likeness, return_inverse=True)
    example = torch.full((int(like.max()) + 1 if like.numel() else 0,), rows.numel(), dtype=torch.int64)
    example.scatter_reduce_(0, like, torch.arange(rows.numel()), "amin")
    maps = element_maps(geometry, support, block_shape, rows[example], cols[example])
    distinct, class_of_like = _distinct(maps)
    return class_of_like[like], maps[distinct]


def element_maps(
    geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], rows: Tensor, cols: Tensor
) -> Tensor:
    """int32 ``[n, block_rows, block_cols]``: the kernel entry that each element of these blocks copies."""
    if geometry.transposed:
        return element_maps(geometry.conv, support, block_shape[::-1], cols, rows).mT.contiguous()
    support = support.within
    maps = torch.empty((rows.numel(), *block_shape), dtype=torch.int32)
    chunk = max(1, _CHUNK_ELEMENTS // (block_shape[0] * block_shape[1]))
    taps = math.prod(geometry.kernel_size)
    group_out, group_in = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
    across = OUTSIDE if support.within_groups else OFF_LOCAL
    for first in range(0, rows.numel(), chunk):
        part = slice(first, first + chunk)
        out_unit = (rows[part, None] * block_shape[0] + torch.arange(block_shape[0])).to(torch.int32)[:, :, None]
        in_unit = (cols[part, None] * block_shape[1] + torch.arange(block_shape[1])).to(torch.int32)[:, None, :]
        out_channel, in_channel = out_unit % geometry.out_channels, in_unit % geometry.in_channels
        tap = _taps(
            geometry,
            support,
            unravel(out_unit // geometry.out_channels, geometry.output_size),
            unravel(in_unit // geometry.in_channels, geometry.input_size),
        )
        kernel_entry = (out_channel * group_in + in_channel % group_in) * taps + tap
        entries = torch.where(tap >= 0, kernel_entry, tap)
        if geometry.groups > 1:
            in_group = out_channel // group_out == in_channel // group_in
            entries = torch.where(in_group, entries, across)
        past = (out_unit >= geometry.out_features) | (in_unit >= geometry.in_features)
        maps[part] = entries.masked_fill(past, OUTSIDE)
    return maps


def _pixel_keys(
    geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], rows: Tensor, cols: Tensor
) -> Tensor:
    """int64 ``[n]``: equal only where two blocks have equal channel phases and equal taps at every pair of pixels."""
    radix = math.prod(geometry.kernel_size) + 2
    sides = []
    for index, side, channels, size in (
        (rows, block_shape[0], geometry.out_channels, geometry.output_size),
        (cols, block_shape[1], geometry.in_channels, geometry.input_size),
    ):
        first = index * side
        last = (first + side).clamp(max=math.prod(size) * channels) - 1
        slots = int((last // channels - first // channels).max()) + 1 if index.numel() else 0
        pixels = first // channels + torch.arange(slots)[:, None]  # [slots, n]
        sides.append((unravel(pixels, size), pixels <= last // channels))
    key = (rows * block_shape[0] % geometry.out_channels) * geometry.in_channels
    key = key + cols * block_shape[1] % geometry.in_channels
    bound = geometry.out_channels * geometry.in_channels
    (out_pixels, out_used), (in_pixels, in_used) = sides
    for slot, used in enumerate(out_used):
        taps = _taps(geometry, support, [coordinate[slot] for coordinate in out_pixels], in_pixels)
        for tap in taps.masked_fill(~(used & in_used), OUTSIDE) + 2:
            if bound > 2**62 // radix:
                distinct, key = torch.unique(key, return_inverse=True)
                bound = distinct.numel()
            key, bound = key * radix + tap, bound * radix
    return key


def _taps(geometry: ConvGeometry, support: Support, out_pixel: list[Tensor], in_pixel: list[Tensor]) -> Tensor:
    """The flat kernel index at which pixels meet; ``OFF_LOCAL`` or ``OUTSIDE`` where they meet at none."""
    tap: Tensor | int = 0
    local: Tensor | bool = True
    inside: Tensor | bool = True
    for dim, (kernel, dilation) in enumerate(zip(geometry.kernel_size, geometry.dilation, strict=True)):
        t = in_pixel[dim] + geometry.padding[dim][0] - out_pixel[dim] * geometry.stride[dim]
        window = support.window(geometry, dim)
        local = (t >= 0) & (t <= (kernel - 1) * dilation) & local
        if dilation > 1:
            local = (t % dilation == 0) & local
        inside = (t >= window.start) & (t < window.stop) & inside
        if window.step > 1:
            inside = ((t - window.start) % window.step == 0) & inside
        tap = t // dilation + tap * kernel
    off_local = torch.where(torch.as_tensor(inside), OFF_LOCAL, OUTSIDE)
    return torch.where(torch.as_tensor(local), tap, off_local).to(in_pixel[0].dtype)


def _distinct(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The number of the first of each distinct map, and int64 ``[n]``: which of those each map equals."""
    found: dict[bytes, int] = {}
    first: list[int] = []
    which = []
    for number, entries in enumerate(numpy.asarray(maps)):
        label = found.setdefault(entries.tobytes(), len(found))
        if label == len(first):
            first.append(number)
        which.append(label)
    return torch.tensor(first, dtype=torch.int64), torch.tensor(which, dtype=torch.int64)
