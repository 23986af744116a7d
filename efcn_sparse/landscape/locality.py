"""How local the weights of a layer are, read off the stored entries."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.landscape.modes import evaluation_mode
from efcn_sparse.landscape.parts import refuse_low_rank

_ELEMENTS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class LayerLocality:
    """The locality of one layer. Units whose weights are all zero do not count; means are over all others.

    With w_i the incoming weights of a unit, q_i the input pixels that they come from, and p_i = w_i² / Σ w²:

    Attributes:
        participation: the inverse participation ratio Σ p_i², from 1/n where n weights are equal to 1 where one is all
            (Ingrosso and Goldt, Data-driven emergence of convolutional structure in neural networks, PNAS 2022).
        gyration: the radius of gyration √(Σ p_i |q_i - m|²) about the center m = Σ p_i q_i, in input pixels.
        non_locality: Σ p_i |q_i - c|, the mean distance in input pixels from the center c of the unit's receptive
            field, as ConViT has it of attention (d'Ascoli et al., ConViT, ICML 2021, equation 7), with p_i in place of
            attention. NaN for a linear layer, whose units have no place.
        share_within: the share of ‖W‖² inside the receptive fields: 1 - δ². NaN for a linear layer.
        kurtosis: the excess kurtosis of a unit's output over ``inputs``, 0 for a normal distribution. NaN without
            ``inputs``.
        equivariance: ‖f(shift x) - shift f(x)‖ / ‖f(x)‖ for a shift of the layer's input by its stride, the mean over
            the dimensions, at output pixels whose receptive fields hold no padding: 0 for a convolution. NaN without
            ``inputs``, for a linear or a transposed layer, and where there are no such pixels.
    """

    participation: float
    gyration: float
    non_locality: float
    share_within: float
    kurtosis: float = math.nan
    equivariance: float = math.nan


class Locality(dict[str, LayerLocality]):
    """The locality of each layer by name. ``str()`` is a table."""

    def __str__(self) -> str:
        names = [field.name for field in fields(LayerLocality)]
        width = max(map(len, ["layer", *self]))
        lines = [f"{'layer':<{width}}" + "".join(f"  {name.replace('_', '-'):>13}" for name in names)]
        for name, layer in self.items():
            lines.append(f"{name:<{width}}" + "".join(f"  {getattr(layer, column):>13.4g}" for column in names))
        return "\n".join(lines)


@torch.no_grad()
def locality(model: nn.Module, inputs: Any = None, *, images: Mapping[str, Sequence[int]] | None = None) -> Locality:
    """How local the weights of embedded convolutions, and of named linear layers, are.

    Args:
        model: is not changed; it runs in evaluation mode if ``inputs`` are given.
        inputs: a batch, one tensor or a tuple of positional inputs, for the measures of activity; the others need none.
        images: ``(channels, *size)`` of the image that a :class:`torch.nn.Linear` takes flattened, by the layer's name.

    Raises:
        ValueError: there is nothing to measure; a layer has the support ``LowRank``, whose weights are a product; or
            ``images`` names no linear layer of that many inputs.

    Example:
        >>> import torch, efcn_sparse as es
        >>> net = es.embed(torch.nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 6, 6))
        >>> es.locality(net)[""].gyration, es.locality(net)[""].share_within   # one weight a unit
        (0.0, 1.0)
    """
    layers: dict[str, tuple[nn.Module, _Measured]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, EmbeddedConv):
            refuse_low_rank(repr(name), layer)
            layers[name] = layer, _of_embedded(layer)
    for name, shape in (images or {}).items():
        layers[name] = _linear(model, name, shape)
    if not layers:
        raise ValueError(
            f"model must hold an embedded convolution, or images name a linear layer, got {type(model).__name__}"
        )
    activity: dict[str, tuple[float, float]] = {}
    if inputs is not None:
        with evaluation_mode(model), _watched(layers, activity):
            model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return Locality((name, LayerLocality(*measured, *activity.get(name, ()))) for name, (_, measured) in layers.items())


_Measured = tuple[float, float, float, float]


def _of_embedded(layer: EmbeddedConv) -> _Measured:
    layer.check_holds_blocks()
    geometry, pattern, values = layer.geometry, layer.linear.pattern, layer.linear.values.detach()
    support, ties = pattern.support_of_blocks(), layer.ties
    sums = _Sums(
        grid(geometry.input_size), geometry.in_channels, geometry.out_features, _centers(geometry), True,
        geometry.out_channels,
    )  # fmt: skip
    rows, cols = pattern.rows_of_blocks().long(), pattern.col_indices.long()
    local = 0.0
    step = max(1, _ELEMENTS_AT_ONCE // (pattern.block_shape[0] * pattern.block_shape[1]))
    for start in range(0, pattern.nnz_blocks, step):
        chunk = slice(start, start + step)
        squares = values[chunk].double().square()
        if support is not None:
            squares = squares.masked_fill(~support[chunk], 0)
        local += float((squares * (ties.maps >= 0)[ties.class_of_block[chunk].long()]).sum())
        sums.add(squares, rows[chunk], cols[chunk])
    participation, gyration, away, total = sums.means()
    return participation, gyration, away, local / total if total else math.nan


def _linear(model: nn.Module, name: str, shape: Sequence[int]) -> tuple[nn.Module, _Measured]:
    layer = dict(model.named_modules()).get(name)
    check_image(f"images[{name!r}]", layer, shape)
    assert isinstance(layer, nn.Linear)
    sums = _Sums(grid(shape[1:]), shape[0], layer.out_features, None, False)
    height = max(1, _ELEMENTS_AT_ONCE // layer.in_features)
    for number, rows in enumerate(layer.weight.detach().split(height)):
        padded = rows.new_zeros((height, layer.in_features))
        padded[: len(rows)] = rows
        sums.add(padded.double().square()[None], torch.tensor([number]), torch.tensor([0]))
    participation, gyration, _, _ = sums.means()
    return layer, (participation, gyration, math.nan, math.nan)


def check_image(name: str, layer: nn.Module | None, shape: Sequence[int] | None) -> None:
    """Refuse what is no linear layer, or an image that it does not take."""
    if not isinstance(layer, nn.Linear) or len(shape or ()) < 2 or math.prod(shape or ()) != layer.in_features:
        raise ValueError(f"{name} must be the (channels, *size) of a linear layer's inputs, got {shape} for {layer}")


class _Sums:
    """Sums over the incoming weights of each unit, block by block.

    Args:
        pixels: float64 ``[pixels, dimensions]``, of which units read ``channels`` numbers each.
        centers: float64 ``[units, dimensions]``, the same for each ``alike`` units; None: they have none.
        channels_last: whether the numbers of a pixel follow each other, or the pixels of a channel.
    """

    def __init__(
        self, pixels: Tensor, channels: int, units: int, centers: Tensor | None, channels_last: bool, alike: int = 1
    ) -> None:
        self._pixels, self._centers, self._units, self._alike = pixels, centers, units, alike
        unit = torch.arange(len(pixels) * channels)
        self._pixel_of = unit // channels if channels_last else unit % len(pixels)
        self._together = channels if channels_last else 1
        self._sums = torch.zeros(units, 4 + pixels.shape[1], dtype=torch.float64)

    def add(self, squares: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Blocks of squared weights ``[n, height, width]`` at these places of the grid of blocks."""
        squares, rows, cols = squares.cpu(), rows.cpu(), cols.cpu()
        height, width = squares.shape[1:]
        unit = (rows[:, None] * height + torch.arange(height)).clamp(max=self._units - 1)  # past the edge all is zero
        fourth = squares.square().sum(2)
        same = math.gcd(width, self._together)  # columns that are of one pixel
        squares = squares.view(*squares.shape[:2], -1, same).sum(3)
        first = (cols[:, None] * width + torch.arange(0, width, same)).clamp(max=len(self._pixel_of) - 1)
        at = self._pixels[self._pixel_of[first]]
        moments = squares @ torch.cat((at, at.square().sum(-1, keepdim=True)), -1)
        found = torch.stack((squares.sum(2), fourth, moments[..., -1], self._away(squares, unit, at)), -1)
        self._sums.index_add_(0, unit.flatten(), torch.cat((found, moments[..., :-1]), -1).flatten(0, 1))

    def _away(self, squares: Tensor, unit: Tensor, at: Tensor) -> Tensor:
        if self._centers is None:
            return squares.new_zeros(unit.shape)
        same = math.gcd(squares.shape[1], self._alike)
        distance = torch.cdist(self._centers[unit[:, ::same]], at)
        return (squares.unflatten(1, (-1, same)) * distance[:, :, None]).sum(3).flatten(1)

    def means(self) -> tuple[float, float, float, float]:
        """Participation, gyration and distance from the center, means over units; and ‖W‖²."""
        norm = self._sums[:, 0]
        used = norm > 0
        if not bool(used.any()):
            return math.nan, math.nan, math.nan, 0.0
        total, fourth, second, away = (self._sums[used, column] for column in range(4))
        center = self._sums[used, 4:] / total[:, None]
        gyration = (second / total - center.square().sum(1)).clamp(min=0).sqrt()
        shares = (fourth / total.square()).mean(), gyration.mean(), (away / total).mean()
        return float(shares[0]), float(shares[1]), float(shares[2]), float(norm.sum())


def grid(size: Sequence[int]) -> Tensor:
    """float64 ``[pixels, dimensions]``: coordinates of each pixel."""
    return torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in size)).view(-1, len(size))


def _centers(geometry: ConvGeometry) -> Tensor:
    """float64 ``[out_features, dimensions]``: the middle of each unit's receptive field, in input pixels."""
    middle = [
        dilation * (kernel - 1) / 2 - low
        for kernel, dilation, (low, _) in zip(geometry.kernel_size, geometry.dilation, geometry.padding, strict=True)
    ]
    pixels, stride, shift = (
        grid(geometry.output_size),
        *(torch.tensor(numbers, dtype=torch.float64) for numbers in (geometry.stride, middle)),
    )
    centers = (pixels - shift) / stride if geometry.transposed else pixels * stride + shift
    return centers.repeat_interleave(geometry.out_channels, 0)


# -- activity ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watched(layers: Mapping[str, tuple[nn.Module, Any]], found: dict[str, tuple[float, float]]) -> Iterator[None]:
    def watch(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if name not in found:
                found[name] = math.nan, math.nan  # the layer is called again below
                even = equivariance(layer, args[0]) if isinstance(layer, EmbeddedConv) else math.nan
                found[name] = _kurtosis(output), even

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, (layer, _) in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kurtosis(x: Tensor) -> float:
    centered = x.double() - x.double().mean(0)
    square = centered.square().mean(0)
    each = centered.pow(4).mean(0)[square > 0] / square[square > 0].square() - 3
    return float(each.mean()) if len(each) else math.nan


def equivariance(layer: EmbeddedConv, x: Tensor) -> float:
    """‖f(shift x) - shift f(x)‖ / ‖f(x)‖, see :class:`LayerLocality`; ``x`` is ``[N, C, *size]``."""
    geometry, y = layer.geometry, layer(x)
    if geometry.transposed:
        return math.nan  # the images of input positions overlap at its output
    found = []
    for dim in range(len(geometry.input_size)):
        spans = []
        for d in range(len(geometry.input_size)):
            low, stride = geometry.padding[d][0], geometry.stride[d]
            reach = geometry.dilation[d] * (geometry.kernel_size[d] - 1)
            first = -(-low // stride)
            last = (geometry.input_size[d] - 1 + low - reach) // stride
            spans.append((first, min(last, geometry.output_size[d] - 1)))
        if any(last - first < (d == dim) for d, (first, last) in enumerate(spans)):
            continue
        inner = [slice(first, last + 1) for first, last in spans]
        first, last = spans[dim]
        ahead, behind = list(inner), list(inner)
        ahead[dim], behind[dim] = slice(first + 1, last + 1), slice(first, last)
        shifted = layer(torch.roll(x, -geometry.stride[dim], 2 + dim))  # its wrapped part is outside what is compared
        where, before = (..., *ahead), (..., *behind)  # named, since mypy for Python 3.10 refuses the star in an index
        there, here = y[where].double(), shifted[before].double()
        norm = float(there.norm())
        found.append(float((here - there).norm()) / norm if norm else math.nan)
    return sum(found) / len(found) if found else math.nan
