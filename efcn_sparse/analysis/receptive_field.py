"""Where an output pixel of a convolution looks, and how far every input pixel lies from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.embedding.geometry import ConvGeometry


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
        first = p * stride - low
        box.append((max(first, 0), min(first + (kernel - 1) * dilation, size - 1)))
    return box


def axis_distances(geometry: ConvGeometry) -> list[Tensor]:
    """int64 ``[output_size[d], input_size[d]]`` for each dimension d: pixels outside the receptive field's interval.

    The distance of two pixels is the largest of these over the dimensions (the measure of ``es.Dilated(radius)``);
    it is 0 inside the box that the receptive field spans, holes of a dilated kernel included.
    """
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
