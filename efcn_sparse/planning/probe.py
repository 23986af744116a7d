"""A small layer with the structure of a large one, on which rates can be measured in milliseconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.plan import LayerPlan
from efcn_sparse.embedding.support import Support

_MOST_WEIGHT_BYTES = 24 << 20
_MOST_UNITS = 1 << 24  # of a batch's inputs and outputs
_MOST_BATCH = 1024


@dataclass(frozen=True)
class Probe:
    """The same convolution with the same blocks, on a smaller image if its weights would take more than 24 MiB.

    Example:
        >>> from efcn_sparse.embedding import Local, plan
        >>> layer = plan(torch.nn.Conv2d(64, 64, 3, padding=1), torch.empty(1, 64, 56, 56)).layers[0]
        >>> Probe.of(layer, batch=32).key
        '64x13x13 to 64x13x13, kernel 3x3, stride 1x1, dilation 1x1, groups 1, local, blocks 64x64, float32, batch 32'
    """

    geometry: ConvGeometry
    support: Support
    block_shape: tuple[int, int]
    dtype: torch.dtype
    batch: int

    @classmethod
    def of(cls, layer: LayerPlan, batch: int) -> Probe:
        """The probe for a layer's products with ``batch`` inputs."""
        batch = min(batch, _MOST_BATCH)
        geometry = _shrunk(layer.geometry, layer.support, layer.dtype.itemsize, batch)
        return cls(geometry, layer.support, layer.block_shape, layer.dtype, batch)

    @property
    def key(self) -> str:
        """A name that says all that a rate depends on."""
        geometry = self.geometry
        return (
            f"{_sides(geometry.in_channels, *geometry.input_size)} to "
            f"{_sides(geometry.out_channels, *geometry.output_size)}, kernel {_sides(*geometry.kernel_size)}, "
            f"stride {_sides(*geometry.stride)}, dilation {_sides(*geometry.dilation)}, groups {geometry.groups}, "
            f"{self.support}, blocks {_sides(*self.block_shape)}, {str(self.dtype).removeprefix('torch.')}, "
            f"batch {self.batch}"
        )


def _sides(*sizes: int) -> str:
    return "x".join(map(str, sizes))


def _shrunk(geometry: ConvGeometry, support: Support, itemsize: int, batch: int) -> ConvGeometry:
    """The largest image of about the same proportions that is small enough, or the smallest that the kernel takes."""
    longest = max(geometry.input_size)
    low, high, best = 0, longest, None
    while low < high:
        side = (low + high + 1) // 2
        candidate = _resized(geometry, side / longest)
        if candidate is None:
            low, best = side, best  # too small for the kernel: look among the larger
        elif _is_small(candidate, support, itemsize, batch):
            low, best = side, candidate
        else:
            high = side - 1
            smallest = candidate
    return best or smallest


def _is_small(geometry: ConvGeometry, support: Support, itemsize: int, batch: int) -> bool:
    units = batch * (geometry.in_features + geometry.out_features)
    return support.least_numbers(geometry) * itemsize <= _MOST_WEIGHT_BYTES and units <= _MOST_UNITS


def _resized(geometry: ConvGeometry, share: float) -> ConvGeometry | None:
    sizes = tuple(max(1, round(size * share)) for size in geometry.input_size)
    try:
        return dataclasses.replace(geometry, input_size=sizes)
    except ValueError:
        return None
