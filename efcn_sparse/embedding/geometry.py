"""The sizes of a convolution at one input size: everything about it but its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution of 1 to 3 spatial dimensions at one input size.

    Features are flattened channels last: the unit of pixel p and channel c is ``p * channels + c``, pixels in
    row-major order. Output pixel p and input pixel q meet at the kernel coordinate
    ``t = q + padding_low - stride * p`` (per dimension); t / dilation is the kernel's index where that is one.

    Attributes:
        in_channels, out_channels, groups: as in :class:`torch.nn.Conv2d`.
        input_size, kernel_size, stride, dilation: one integer per spatial dimension.
        padding: ``(low, high)`` per spatial dimension, in zeros.
        padding_mode, border: where the layer first puts something else than zeros around its input: ``"reflect"``,
            ``"replicate"`` or ``"circular"``, and ``(low, high)`` of it per spatial dimension. ``input_size`` is the
            size with that border, whose pixels are input units like all others; :attr:`image_size` is without it.
        transposed, output_padding: of a transposed convolution, whose matrix is the transpose of that of :attr:`conv`.

    Raises:
        ValueError: a size is out of range, or the kernel does not fit into the padded input.

    Example:
        >>> g = ConvGeometry(3, 64, 1, (32, 32), (4, 4), (2, 2), ((2, 2), (2, 2)), (1, 1))
        >>> g.output_size, g.in_features, g.out_features, g.local_weights
        ((17, 17), 3072, 18496, 786432)
    """

    in_channels: int
    out_channels: int
    groups: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    padding_mode: str = "zeros"
    border: tuple[tuple[int, int], ...] = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        dims = len(self.input_size)
        if not 1 <= dims <= 3:
            raise ValueError(f"input_size must have 1 to 3 dimensions, got {list(self.input_size)}")
        for name in ("input_size", "kernel_size", "stride", "dilation"):
            sizes = getattr(self, name)
            if len(sizes) != dims or min(sizes) < 1:
                raise ValueError(f"{name} must be {dims} integers of at least 1, got {list(sizes)}")
        if len(self.padding) != dims or any(len(pair) != 2 or min(pair) < 0 for pair in self.padding):
            raise ValueError(f"padding must be {dims} pairs (low, high) of at least 0, got {list(self.padding)}")
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide the channels {self.in_channels} and {self.out_channels}, got {self.groups}"
            )
        if min(self.output_size) < 1:
            raise ValueError(
                f"kernel_size {list(self.kernel_size)} must fit into the padded input_size {list(self.input_size)}, "
                f"got output size {list(self.output_size)}"
            )
        if self.transposed and self.conv.output_size != self.input_size:
            raise ValueError(
                f"output_padding must be smaller than stride or at most padding, got {list(self.output_padding)}"
            )

    @classmethod
    def of(
        cls, conv: nn.Module, input_size: tuple[int, ...], output_size: tuple[int, ...] | None = None
    ) -> ConvGeometry:
        """The geometry of a convolution of torch, transposed or not, at ``input_size``.

        Args:
            output_size: that a transposed one is called with, in the place of its own ``output_padding``.

        Example:
            >>> ConvGeometry.of(nn.Conv1d(1, 1, 4, padding="same"), (9,)).padding
            ((1, 2),)
        """
        assert isinstance(conv, _ConvNd)
        kernel, dilation = tuple(conv.kernel_size), tuple(conv.dilation)
        if conv.padding == "same":
            totals = [spread * (size - 1) for size, spread in zip(kernel, dilation, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        elif conv.padding == "valid":
            padding = tuple((0, 0) for _ in kernel)
        else:
            padding = tuple((int(side), int(side)) for side in conv.padding)
        if conv.transposed:
            more = tuple(conv.output_padding)
            if output_size is not None:
                more = tuple(
                    side - (size - 1) * stride + sum(sides) - spread * (taps - 1) - 1
                    for side, size, stride, sides, spread, taps in zip(
                        output_size, input_size, conv.stride, padding, dilation, kernel, strict=True
                    )
                )
            return cls(
                conv.in_channels, conv.out_channels, conv.groups, tuple(input_size), kernel, tuple(conv.stride),
                padding, dilation, transposed=True, output_padding=more,
            )  # fmt: skip
        size, mode = tuple(input_size), "zeros"
        border: tuple[tuple[int, int], ...] = ()
        if conv.padding_mode != "zeros" and any(map(any, padding)):
            mode, border, padding = conv.padding_mode, padding, tuple((0, 0) for _ in kernel)
            size = tuple(side + sum(pair) for side, pair in zip(size, border, strict=True))
        return cls(
            conv.in_channels, conv.out_channels, conv.groups, size, kernel, tuple(conv.stride), padding, dilation,
            mode, border,
        )  # fmt: skip

    def describe(self, module: nn.Module) -> None:
        """Give ``module`` the attributes by which models ask a convolution's sizes."""
        for name in ("in_channels", "out_channels", "groups", "kernel_size", "stride", "dilation"):
            setattr(module, name, getattr(self, name))

    @property
    def image_size(self) -> tuple[int, ...]:
        """Spatial size of what the layer takes: the input without its border."""
        border = self.border or ((0, 0),) * len(self.input_size)
        return tuple(side - sum(pair) for side, pair in zip(self.input_size, border, strict=True))

    @cached_property
    def conv(self) -> ConvGeometry:
        """This convolution; of a transposed one, that whose matrix is the transpose of W."""
        if not self.transposed:
            return self
        padding = tuple(
            (low, max(0, high - more)) for (low, high), more in zip(self.padding, self.output_padding, strict=True)
        )
        return ConvGeometry(
            self.out_channels, self.in_channels, self.groups, self.output_size, self.kernel_size, self.stride, padding,
            self.dilation,
        )  # fmt: skip

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        if self.transposed:
            return tuple(
                (size - 1) * stride - sum(padding) + dilation * (kernel - 1) + more + 1
                for size, padding, dilation, kernel, stride, more in zip(
                    self.input_size, self.padding, self.dilation, self.kernel_size, self.stride, self.output_padding,
                    strict=True,
                )
            )  # fmt: skip
        return tuple(
            (size + sum(padding) - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                self.input_size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )

    @property
    def in_features(self) -> int:
        """Units of the input."""
        return math.prod(self.input_size) * self.in_channels

    @property
    def out_features(self) -> int:
        """Units of the output."""
        return math.prod(self.output_size) * self.out_channels

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of W."""
        return self.out_features, self.in_features

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The shape of the convolution's ``weight``."""
        return (self.conv.out_channels, self.conv.in_channels // self.groups, *self.kernel_size)

    @property
    def local_weights(self) -> int:
        """How many weights the locally connected layer has, those that would read padding left out."""
        taps = zip(self.dilation, self.kernel_size, strict=True)
        return self.weights_in([range(0, spread * size, spread) for spread, size in taps], True)

    @property
    def full_weights(self) -> int:
        """How many weights the dense layer has."""
        return self.in_features * self.out_features

    def weights_in(self, windows: list[range], within_groups: bool) -> int:
        """How many entries of W have their kernel coordinates in ``windows`` (one per spatial dimension)."""
        if self.transposed:
            return self.conv.weights_in(windows, within_groups)
        pairs = 1
        for dim, window in enumerate(windows):
            low, stride, size = self.padding[dim][0], self.stride[dim], self.input_size[dim]
            pairs *= sum(
                len(range(*_clipped(window, low - stride * p, low - stride * p + size)))
                for p in range(self.output_size[dim])
            )
        return pairs * self.out_channels * self.in_channels // (self.groups if within_groups else 1)


def _clipped(window: range, start: int, stop: int) -> tuple[int, int, int]:
    """The part of ``window`` inside ``[start, stop)``."""
    first = window.start
    if first < start:
        first += -(-(start - first) // window.step) * window.step
    return first, min(window.stop, stop), window.step
