"""Locally connected layers: convolutions whose weights are not shared between positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.linear.dense_weight import as_dense_weight

_CHUNKS, _CHUNK_ELEMENTS = 256, (1 << 14, 1 << 22)  # indices take twenty times the memory of the weights
Sizes = int | Sequence[int]
Padding = Sizes | Sequence[tuple[int, int]] | str


class _LocallyConnected(EmbeddedConv):
    dims: ClassVar[int]
    stands_for_convolution = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Sizes,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = {
            name: each(name, given, self.dims)
            for name, given in dict(
                input_size=input_size, kernel_size=kernel_size, stride=stride, dilation=dilation
            ).items()
        }  # in this order for _padding
        counts: dict[str, Any] = dict(in_channels=in_channels, out_channels=out_channels, groups=groups)
        for name, given in counts.items():
            if not isinstance(given, Integral):
                raise ValueError(f"{name} must be an integer, got {given!r}")
        geometry = ConvGeometry(
            int(in_channels), int(out_channels), int(groups), sizes["input_size"], sizes["kernel_size"],
            sizes["stride"], _padding(padding, sizes), sizes["dilation"],
        )  # fmt: skip
        super().__init__(geometry, bias=bias, device=device, dtype=dtype)
        self.linear.pattern_owner = type(self).__name__

    @classmethod
    def from_conv(cls, conv: nn.Module, input_size: Sequence[int], *_: Any, **__: Any) -> Any:
        """The locally connected layer that computes what ``conv`` does, with a copy of its kernel at each position.

        Args:
            conv: a convolution of as many dimensions, with zero padding; left as it is.
            input_size: the spatial sizes of its input.

        Raises:
            TypeError: ``conv`` is no such convolution.
            ValueError: it pads with something else than zeros.
        """
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[cls.dims - 1]
        if not isinstance(conv, kind):
            raise TypeError(f"conv must be a {kind.__name__}, got {type(conv).__name__}")
        geometry = ConvGeometry.of(conv, each("input_size", input_size, cls.dims))
        if geometry.border:
            raise ValueError(f"conv must have padding_mode 'zeros', got {geometry.padding_mode!r}")
        weight = conv.weight
        layer = cls(
            geometry.in_channels, geometry.out_channels, geometry.input_size, geometry.kernel_size, geometry.stride,
            geometry.padding, geometry.dilation, geometry.groups, conv.bias is not None, "meta", weight.dtype,
        )  # fmt: skip
        return layer._take(conv)

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/√n, 1/√n), n the number of weights of each unit, without padding."""
        self.linear.reset_parameters()

    # -- the weights, position by position ---------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # numbers, where an embedded convolution has facts only
        """``[*output_size, out_channels, in_channels / groups, *kernel_size]``: each position's kernel, a copy.

        Zero where a kernel entry meets padding. No gradient flows through it, and writing to it raises
        ``RuntimeError``: train ``linear.values``, set numbers by :meth:`load_weight`.
        """
        values = self.linear.values.detach()
        weight = values.new_zeros((*self.geometry.output_size, *self.geometry.kernel_shape))
        kernels = weight.flatten(0, -len(self.geometry.kernel_shape) - 1)
        for chunk, stored, positions, place in self._places():
            kernels[positions].view(-1)[place] = values[chunk][stored]
        return as_dense_weight(weight)

    @torch.no_grad()
    def load_weight(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Set the weights to ``weight``, and the biases to ``bias``, in place.

        Args:
            weight: as :attr:`weight` has it; what meets padding is not used.
            bias: ``[*output_size, out_channels]``; None leaves the biases as they are.

        Raises:
            TypeError: one of them is no tensor.
            ValueError: a shape does not fit, or the layer has no bias.
        """
        tensors: dict[str, Any] = dict(weight=weight, bias=weight if bias is None else bias)
        for name, given in tensors.items():
            if not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
        expected = [*self.geometry.output_size, *self.geometry.kernel_shape]
        if list(weight.shape) != expected:
            raise ValueError(f"weight must be {expected}, got {list(weight.shape)}")
        if bias is not None:
            places = [*self.geometry.output_size, self.geometry.out_channels]
            if self.linear.bias is None:
                raise ValueError("bias must be None for a layer without one, got a tensor")
            if list(bias.shape) != places:
                raise ValueError(f"bias must be {places}, got {list(bias.shape)}")
            self.linear.bias.copy_(bias.reshape(-1))
        values = self.linear.values
        kernels = weight.flatten(0, -len(self.geometry.kernel_shape) - 1)
        for chunk, stored, positions, place in self._places():
            blocks = values.new_zeros(stored.shape)
            blocks[stored] = kernels[positions].to(values.device, values.dtype).reshape(-1)[place]
            values[chunk] = blocks

    def _places(self) -> Iterator[tuple[slice, Tensor, slice, Tensor]]:
        """Chunks of blocks: which entries are stored, bool; positions, and places in their kernels, flat, int64."""
        pattern, ties, kernel = self.linear.pattern, self.ties, self.ties.counts.numel()
        height, width = pattern.block_shape
        rows, classes = pattern.rows_of_blocks().long(), ties.class_of_block.long()
        positions = math.prod(self.geometry.output_size)
        least, most = _CHUNK_ELEMENTS
        step = max(1, min(max(least, self.linear.values.numel() // _CHUNKS), most) // (height * width))
        for start in range(0, pattern.nnz_blocks, step):
            chunk = slice(start, start + step)
            entries = ties.maps[classes[chunk]].long()
            unit = rows[chunk, None] * height + torch.arange(height, device=rows.device)
            at = (unit // self.geometry.out_channels).clamp_(max=positions - 1)  # a block may reach past the last unit
            first = int(at[0, 0])
            place = ((at - first) * kernel)[:, :, None] + entries
            stored = entries >= 0
            yield chunk, stored, slice(first, int(at[-1, -1]) + 1), place[stored]

    def extra_repr(self) -> str:
        geometry = self.geometry
        text = f"{geometry.in_channels}, {geometry.out_channels}, input_size={geometry.input_size}, "
        text += f"kernel_size={geometry.kernel_size}, stride={geometry.stride}"
        if any(any(pair) for pair in geometry.padding):
            same = all(low == high for low, high in geometry.padding)
            text += f", padding={tuple(low for low, _ in geometry.padding) if same else geometry.padding}"
        if set(geometry.dilation) != {1}:
            text += f", dilation={geometry.dilation}"
        if geometry.groups != 1:
            text += f", groups={geometry.groups}"
        return text if self.linear.bias is not None else f"{text}, bias=False"


class LocallyConnected1d(_LocallyConnected):
    """:class:`LocallyConnected2d` for ``[N, C, L]``.

    Example:
        >>> layer = LocallyConnected1d(4, 8, input_size=10, kernel_size=3, padding="same")
        >>> layer(torch.randn(2, 4, 10)).shape, layer.weight.shape
        (torch.Size([2, 8, 10]), torch.Size([10, 8, 4, 3]))
    """

    dims = 1


class LocallyConnected2d(_LocallyConnected):
    """A convolution with a kernel of its own at each output position, and a bias of its own for each unit.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, device, dtype: as of
            :class:`torch.nn.Conv2d`.
        input_size: the spatial size of the inputs; one integer stands for each dimension.
        padding: zeros on both sides, as of :class:`torch.nn.Conv2d`; ``"same"`` also with a stride, then with the
            output size ``ceil(input_size / stride)``, as Keras and Flax have it; or a pair (before, after) for each
            dimension.

    Inputs are ``[N, in_channels, *input_size]`` or without N, outputs ``[N, out_channels, *output_size]``, channels
    last in memory. Initial weights are uniform with the fan-in of each unit, padding left out.

    Law: with one kernel at every position it is that convolution: ``LocallyConnected2d.from_conv(conv, size)(x) ==
    conv(x)``.

    Raises:
        ValueError: a size is out of range, or an input has another size than ``input_size``.

    Example:
        >>> layer = LocallyConnected2d(3, 8, input_size=(6, 5), kernel_size=3, padding=1)
        >>> layer
        LocallyConnected2d(
          3, 8, input_size=(6, 5), kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)
          (linear): SparseLinear(in_features=90, out_features=240, ...)
        )
        >>> layer(torch.randn(2, 3, 6, 5)).shape, layer.weight.shape
        (torch.Size([2, 8, 6, 5]), torch.Size([6, 5, 8, 3, 3, 3]))
    """

    dims = 2


class LocallyConnected3d(_LocallyConnected):
    """:class:`LocallyConnected2d` for ``[N, C, D, H, W]``.

    Example:
        >>> layer = LocallyConnected3d(1, 2, input_size=4, kernel_size=2, stride=2, bias=False)
        >>> layer(torch.randn(5, 1, 4, 4, 4)).shape, layer.weight.shape
        (torch.Size([5, 2, 2, 2, 2]), torch.Size([2, 2, 2, 2, 1, 2, 2, 2]))
    """

    dims = 3


def each(name: str, given: Sizes, dims: int) -> tuple[int, ...]:
    """One integer per dimension."""
    sizes = tuple(given) if isinstance(given, Sequence) else (given,) * dims
    if len(sizes) != dims or not all(isinstance(size, Integral) for size in sizes):
        raise ValueError(f"{name} must be an integer or {dims} of them, got {given!r}")
    return tuple(map(int, sizes))


def _padding(given: Padding, sizes: dict[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
    dims = len(sizes["kernel_size"])
    if given == "valid":
        return ((0, 0),) * dims
    if given == "same":
        pairs = []
        for size, kernel, stride, dilation in zip(*sizes.values(), strict=True):
            total = max(0, (-(-size // max(1, stride)) - 1) * stride + dilation * (kernel - 1) + 1 - size)
            pairs.append((total // 2, total - total // 2))
        return tuple(pairs)
    if isinstance(given, str):
        raise ValueError(f"padding must be 'same', 'valid' or numbers, got {given!r}")
    sides: Sequence[Any] = tuple(given) if isinstance(given, Sequence) else (given,) * dims
    both = [tuple(side) if isinstance(side, Sequence) else (side, side) for side in sides]
    integers = all(isinstance(side, Integral) for pair in both for side in pair)
    if len(both) != dims or any(len(pair) != 2 for pair in both) or not integers:
        raise ValueError(f"padding must be an integer, {dims} of them, or {dims} pairs (before, after), got {given!r}")
    return tuple((int(low), int(high)) for low, high in both)
