"""Blocks that look alike: equal element maps, found from pixels and channel phases, not from elements."""

from __future__ import annotations

import math

import numpy
import torch
from torch import Tensor

from efcn_sparse.embedding.cover import unravel
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.support import Support
from efcn_sparse.embedding.ties import OFF_LOCAL, OUTSIDE

_CHUNK_ELEMENTS = 1 << 18


def classify(
    geometry: ConvGeometry, support: Support, block_shape: tuple[int, int], rows: Tensor, cols: Tensor
) -> tuple[Tensor, Tensor]:
    """``(class_of_block, maps)`` of the blocks at ``(rows, cols)``, as :class:`Ties` holds them.

    Args:
        rows, cols: int64 ``[n]``: block coordinates.

    Returns:
        int64 ``[n]`` and int32 ``[n_classes, block_rows, block_cols]``.
    """
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
        pixels = [first // channels + slot for slot in range(slots)]
        sides.append([(unravel(pixel, size), pixel <= last // channels) for pixel in pixels])
    key = (rows * block_shape[0] % geometry.out_channels) * geometry.in_channels
    key = key + cols * block_shape[1] % geometry.in_channels
    bound = geometry.out_channels * geometry.in_channels
    for out_pixel, out_used in sides[0]:
        for in_pixel, in_used in sides[1]:
            tap = _taps(geometry, support, out_pixel, in_pixel)
            if len(sides[0]) * len(sides[1]) > 1:
                tap = tap.masked_fill(~(out_used & in_used), OUTSIDE)
            if bound > 2**62 // radix:
                distinct, key = torch.unique(key, return_inverse=True)
                bound = distinct.numel()
            key, bound = key * radix + (tap + 2), bound * radix
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
