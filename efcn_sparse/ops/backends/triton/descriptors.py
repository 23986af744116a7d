"""Tensor descriptors: tiles of x that Hopper's copy engine fetches by itself, without an address for each thread."""

from __future__ import annotations

from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tuning import Config

_ALIGNMENT, _LARGEST_SIDE, _LARGEST_PLACE = 16, 256, 1 << 31


def fits(x: Tensor, width: int, config: Config, device: Device) -> bool:
    """Whether the device has a copy engine, and the layout of x and the tiles of ``config`` suit it.

    Args:
        width: of a block, along the columns of x.
    """
    batch, in_features = x.shape
    return (
        device.fetches_tiles
        and x.dtype.itemsize <= 4
        and width % config.block_k == 0
        and in_features % width == 0
        and 0 < batch < _LARGEST_PLACE
        and max(config.block_m, config.block_k) <= _LARGEST_SIDE
        and x.stride(1) == 1
        and x.stride(0) * x.dtype.itemsize % _ALIGNMENT == 0
        and x.data_ptr() % _ALIGNMENT == 0
    )


def describe(x: Tensor, config: Config) -> TensorDescriptor:
    """x in tiles of the configuration; what lies past its last row is read as zero."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [config.block_m, config.block_k])
