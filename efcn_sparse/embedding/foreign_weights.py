"""Locally connected layers of other libraries, weights included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.embedding.locally_connected import (
    LocallyConnected1d,
    LocallyConnected2d,
    LocallyConnected3d,
    Padding,
    Sizes,
    each,
)

LocallyConnected = LocallyConnected1d | LocallyConnected2d | LocallyConnected3d
_KINDS = (LocallyConnected1d, LocallyConnected2d, LocallyConnected3d)


def locally_connected_from_flax(
    kernel: Any,
    bias: Any = None,
    *,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    strides: Sizes = 1,
    padding: Padding = "SAME",
    kernel_dilation: Sizes = 1,
) -> LocallyConnected:
    """The layer of Flax's ``nn.ConvLocal``; the other arguments are the ones that it was made with.

    Args:
        kernel: ``[*output_size, in_features * prod(kernel_size), features]``, an array of NumPy or JAX. The middle axis
            runs over the channels first and then over the kernel, although Flax's images are channels last.
        bias: ``[*output_size, features]``, or None.
        input_size: the spatial size of the images.

    Returns:
        A layer for ``[N, C, *input_size]``: Flax's ``[N, *input_size, C]`` with the channels moved.

    Raises:
        ValueError: the arrays do not fit the sizes.

    Example:
        >>> layer = locally_connected_from_flax(
        ...     np.ones((4, 4, 18, 5), np.float32), input_size=(4, 4), kernel_size=(3, 3))
        >>> layer(torch.zeros(1, 2, 4, 4)).shape
        torch.Size([1, 5, 4, 4])
    """
    array = np.asarray(kernel)
    dims, taps = len(input_size), math.prod(kernel_size)
    if array.ndim != dims + 2 or array.shape[-2] % taps:
        raise ValueError(
            f"kernel must be [*output_size, in_features * {taps}, features] with {dims + 2} dimensions, got "
            f"{list(array.shape)}"
        )
    layer = _KINDS[dims - 1](
        array.shape[-2] // taps, array.shape[-1], tuple(input_size), tuple(kernel_size), strides,
        padding.lower() if isinstance(padding, str) else padding, kernel_dilation, bias=bias is not None,
        dtype=_tensor(array).dtype,
    )  # fmt: skip
    g = layer.geometry
    weight = array.reshape(*array.shape[:dims], g.in_channels, *g.kernel_size, g.out_channels)
    return _loaded(layer, np.moveaxis(weight, -1, dims), bias)


def locally_connected_from_keras(
    weights: Sequence[Any], config: Mapping[str, Any], input_size: Sequence[int]
) -> LocallyConnected:
    """The layer of Keras 2's or tf_keras's ``LocallyConnected1D`` or ``LocallyConnected2D``, in all implementations.

    Args:
        weights: ``layer.get_weights()``.
        config: ``layer.get_config()``, of which ``filters``, ``kernel_size``, ``strides``, ``padding``,
            ``data_format``, ``implementation``, ``use_bias`` and ``activation`` are used.
        input_size: the spatial size of the images.

    Returns:
        A layer for ``[N, C, *input_size]``, whatever Keras's ``data_format``.

    Raises:
        ValueError: the weights do not fit the configuration, or there is an activation, which this layer does not have.

    Example:
        >>> config = dict(filters=2, kernel_size=(3,), strides=(1,), padding="valid", implementation=1)
        >>> layer = locally_connected_from_keras([np.ones((4, 3, 2)), np.zeros((4, 2))], config, (6,))
        >>> layer(torch.ones(1, 1, 6, dtype=torch.float64))[0, 0]
        tensor([3., 3., 3., 3.], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """
    if config.get("activation", "linear") != "linear":
        raise ValueError(
            f"config must have a linear activation, got {config['activation']!r}: pass it as 'linear' and put the "
            "activation behind the layer"
        )
    arrays = [np.asarray(one) for one in weights]
    use_bias, implementation = config.get("use_bias", True), config.get("implementation", 1)
    if len(arrays) != 1 + use_bias:
        raise ValueError(f"weights must be {1 + use_bias} arrays for use_bias={use_bias}, got {len(arrays)}")
    kernel, dims, filters = arrays[0], len(input_size), config["filters"]
    first = config.get("data_format") == "channels_first"
    sizes = dict(input_size=tuple(input_size), kernel_size=config["kernel_size"], stride=config.get("strides", 1))
    padding = _keras_padding(config.get("padding", "valid"), sizes, dims)
    probe = _KINDS[dims - 1](1, 1, **sizes, padding=padding, device="meta").geometry
    channels = _keras_channels(kernel, probe, filters, implementation, first)
    layer = _KINDS[dims - 1](channels, filters, **sizes, padding=padding, bias=use_bias, dtype=_tensor(kernel).dtype)
    weight = _KERAS[implementation](kernel, layer.geometry, first)
    bias = arrays[1] if use_bias else None
    if bias is not None and first:  # Keras adds it reshaped, not transposed, to [filters, *output_size]
        bias = np.moveaxis(bias.reshape(filters, *layer.geometry.output_size), 0, -1)
    return _loaded(layer, weight, bias)


def locally_connected_from_unfold(
    weight: Any, bias: Any = None, *, input_size: Sequence[int], kernel_size: Sequence[int], stride: Sizes = 1
) -> LocallyConnected:
    """The layer of the usual module that unfolds its input, multiplies by a weight for each position, and sums.

    Args:
        weight: ``[out_channels, in_channels, *output_size, prod(kernel_size)]``, with or without a leading 1.
        bias: ``[out_channels, *output_size]``, with or without a leading 1; None without one.
        input_size: the spatial size of the images, padding included where the module pads them itself.

    Raises:
        ValueError: the arrays do not fit the sizes.

    Example:
        >>> layer = locally_connected_from_unfold(torch.ones(1, 4, 3, 2, 2, 9), input_size=(4, 4), kernel_size=(3, 3))
        >>> layer(torch.ones(1, 3, 4, 4)).unique()
        tensor([27.], grad_fn=<Unique2Backward0>)
    """
    dims = len(input_size)
    array = _without_batch(_tensor(weight), dims + 3)
    if array.dim() != dims + 3 or array.shape[-1] != math.prod(kernel_size):
        expected = f"[out_channels, in_channels, *output_size, {math.prod(kernel_size)}]"
        raise ValueError(f"weight must be {expected}, got {list(array.shape)}")
    layer = _KINDS[dims - 1](
        array.shape[1], array.shape[0], tuple(input_size), tuple(kernel_size), stride, bias=bias is not None,
        dtype=array.dtype,
    )  # fmt: skip
    weight = array.movedim((0, 1), (dims, dims + 1)).unflatten(-1, tuple(kernel_size))
    return _loaded(layer, weight, None if bias is None else _without_batch(_tensor(bias), dims + 1).movedim(0, -1))


def _loaded(layer: LocallyConnected, weight: Any, bias: Any) -> LocallyConnected:
    layer.load_weight(_tensor(weight), None if bias is None else _tensor(bias))
    return layer


def _tensor(array: Any) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    given = np.asarray(array)
    return torch.from_numpy(given if given.flags.writeable and min(given.strides, default=0) >= 0 else given.copy())


def _without_batch(array: Tensor, dims: int) -> Tensor:
    return array[0] if array.dim() == dims + 1 and array.shape[0] == 1 else array


# -- Keras -------------------------------------------------------------------------------------------------------------


def _keras_padding(padding: str, sizes: Mapping[str, Any], dims: int) -> Padding:
    """What ``"same"`` means here: output pixel p looks at the kernel's size around p · stride, half of it before.

    That is not what Keras's convolutions do: for kernels of even size, and for strides, those may start later.
    """
    if padding != "same":
        return padding
    pairs = []
    for size, kernel, stride in zip(*(each(name, given, dims) for name, given in sizes.items()), strict=True):
        low = kernel // 2
        pairs.append((low, max(0, (-(-size // stride) - 1) * stride + kernel - low - size)))
    return tuple(pairs)


def _keras_channels(kernel: np.ndarray, one: ConvGeometry, filters: int, implementation: int, first: bool) -> int:
    """The channels of the input, from the shape of the kernel; ``one`` is the geometry of one channel."""
    positions, taps, dims = math.prod(one.output_size), math.prod(one.kernel_size), len(one.input_size)
    if implementation == 1:
        channels, expected = kernel.shape[1] // taps if kernel.ndim == 3 else 0, f"[{positions}, {taps} C, {filters}]"
        fits = kernel.ndim == 3 and kernel.shape == (positions, taps * channels, filters)
    elif implementation == 2:
        channels = kernel.shape[0 if first else dims] if kernel.ndim == 2 * dims + 2 else 0
        shape = [
            *((channels, *one.input_size) if first else (*one.input_size, channels)),
            *((filters, *one.output_size) if first else (*one.output_size, filters)),
        ]
        fits, expected = list(kernel.shape) == shape, str(shape).replace("0", "C", 1)
    elif implementation == 3:
        entries = one.local_weights * filters
        channels, expected = kernel.size // entries, f"[{entries} C]"
        fits = kernel.shape == (entries * channels,)
    else:
        raise ValueError(f"config must have the implementation 1, 2 or 3, got {implementation!r}")
    if not fits or channels < 1:
        raise ValueError(f"weights must begin with a kernel {expected}, got {list(kernel.shape)}")
    return channels


def _patches(kernel: np.ndarray, g: ConvGeometry, first: bool) -> np.ndarray:
    dims = len(g.input_size)
    patch = (g.in_channels, *g.kernel_size) if first else (*g.kernel_size, g.in_channels)
    weight = kernel.reshape(*g.output_size, *patch, g.out_channels)
    weight = np.moveaxis(weight, -1, dims)
    return weight if first else np.moveaxis(weight, -1, dims + 1)


def _dense(kernel: np.ndarray, g: ConvGeometry, first: bool) -> np.ndarray:
    out, at, tap = _meetings(g)
    dims = len(g.input_size)
    if first:
        kernel = np.moveaxis(np.moveaxis(kernel, 0, dims), dims + 1, -1)
    matrix = kernel.reshape(math.prod(g.input_size), g.in_channels, math.prod(g.output_size), g.out_channels)
    weight = _empty(kernel, g)
    weight[out, :, :, tap] = matrix[at, :, out, :].transpose(0, 2, 1)
    return weight.reshape(*g.output_size, *g.kernel_shape)


def _sparse(kernel: np.ndarray, g: ConvGeometry, first: bool) -> np.ndarray:
    """Numbers of the entries of the matrix [outputs, inputs], row by row."""
    out, at, tap = (side[:, None, None] for side in _meetings(g))
    o, i = np.arange(g.out_channels)[:, None], np.arange(g.in_channels)
    row = o * math.prod(g.output_size) + out if first else out * g.out_channels + o
    column = i * math.prod(g.input_size) + at if first else at * g.in_channels + i
    order = np.argsort((row * g.in_features + column).reshape(-1))
    place = np.broadcast_arrays(out, o, i, tap)
    weight = _empty(kernel, g)
    weight[tuple(side.reshape(-1)[order] for side in place)] = kernel
    return weight.reshape(*g.output_size, *g.kernel_shape)


def _empty(kernel: np.ndarray, g: ConvGeometry) -> np.ndarray:
    shape = (math.prod(g.output_size), g.out_channels, g.in_channels, math.prod(g.kernel_size))
    return np.zeros(shape, kernel.dtype)


def _meetings(g: ConvGeometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Output pixel, input pixel and kernel entry of every three that meet, as flat indices."""
    grids = []
    for p, k, s, (low, _), d in zip(g.output_size, g.kernel_size, g.stride, g.padding, g.dilation, strict=True):
        grids.append(np.arange(p)[:, None] * s - low + np.arange(k) * d)
    dims = len(grids)
    inside = np.ones((*g.output_size, *g.kernel_size), bool)
    at = np.zeros(inside.shape, np.int64)
    for d, grid in enumerate(grids):
        shape = [1] * (2 * dims)
        shape[d], shape[dims + d] = grid.shape
        q = grid.reshape(shape)
        inside &= (q >= 0) & (q < g.input_size[d])
        at = at * g.input_size[d] + q
    flat = (math.prod(g.output_size), math.prod(g.kernel_size))
    out, tap = inside.reshape(flat).nonzero()
    return out, at.reshape(flat)[out, tap], tap


_KERAS = {1: _patches, 2: _dense, 3: _sparse}
