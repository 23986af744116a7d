"""Convolutions to embed, and the truth about them by brute force: ``F.conv`` on unit vectors, and plain loops."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from efcn_sparse import Dilated, Full, Local
from efcn_sparse.embedding import OFF_LOCAL, OUTSIDE, Support

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ConvCase(NamedTuple):
    """A convolution at one input size, and how to embed it."""

    channels: tuple[int, int]
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    support: Support
    block_shape: tuple[int, int] | None

    def conv(self, dtype: torch.dtype = torch.float64) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        return CONVOLUTIONS[len(self.size)](
            *self.channels, self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation,
            groups=self.groups, bias=self.bias, dtype=dtype,
        )  # fmt: skip

    def example(self, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(batch, self.channels[0], *self.size, dtype=dtype)


def case(
    channels: tuple[int, int],
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    support: Support = Local(),
    block_shape: tuple[int, int] | None = None,
) -> ConvCase:
    dims = len(size)
    pad = padding if isinstance(padding, str) else (padding,) * dims
    return ConvCase(
        channels, size, kernel, (stride,) * dims, pad, (dilation,) * dims, groups, bias, support, block_shape
    )


CASES = {
    "rgb": case((3, 64), (8, 8), (4, 4), stride=2, padding=2),
    "one-channel": case((1, 8), (9, 9), (5, 5), padding=2),
    "24-channels": case((24, 40), (4, 4), (3, 3), padding=1),
    "depthwise": case((16, 16), (5, 5), (3, 3), padding=1, groups=16),
    "depthwise-twice": case((6, 12), (4, 5), (3, 2), padding=1, groups=6, support=Dilated(1)),
    "groups-in-wide-blocks": case((4, 6), (4, 4), (3, 3), groups=2, block_shape=(8, 10)),
    "groups-full": case((4, 4), (3, 4), (2, 2), groups=2, support=Full(), block_shape=(3, 5)),
    "same-even-kernel": case((2, 3), (5, 4), (4, 2), padding="same", support=Dilated(1)),
    "valid": case((2, 2), (5, 5), (3, 3), padding="valid"),
    "holes": case((2, 3), (7, 6), (3, 2), dilation=2, padding=2, block_shape=(3, 4)),
    "holes-filled": case((2, 3), (7, 6), (3, 2), dilation=2, padding=2, support=Dilated(0)),
    "only-meets-padding": case((2, 2), (2, 2), (5, 5), stride=2, padding=2),
    "sees-only-padding": case((2, 3), (1, 1), (1, 1), stride=3, padding=1, support=Dilated(0)),
    "sees-only-padding, grouped": case((2, 2), (1, 1), (1, 1), stride=3, padding=1, groups=2),
    "unread-inputs": case((2, 2), (7, 7), (1, 1), stride=3),
    "1d": case((3, 5), (11,), (4,), stride=3, padding=1, block_shape=(4, 2)),
    "3d": case((2, 4), (3, 4, 2), (2, 3, 1), padding=1, support=Dilated(1)),
    "full": case((3, 4), (4, 4), (3, 3), padding=1, support=Full()),
    "blocks-of-pixels": case((3, 4), (6, 6), (3, 3), padding=1, block_shape=(16, 18)),
    "larger-than-the-matrix": case((1, 2), (3, 3), (2, 2), block_shape=(64, 64)),
    "no-bias": case((3, 4), (5, 5), (3, 3), bias=False),
}  # fmt: skip


@st.composite
def cases(draw: st.DrawFn) -> ConvCase:
    """Any small convolution that exists, with any support and blocks."""
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    size = tuple(draw(st.integers(1, 6 if dims < 3 else 4)) for _ in range(dims))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = (groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4)))
    kernel = tuple(draw(st.integers(1, 4 if dims < 3 else 2)) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    reach = [spread * (k - 1) for k, spread in zip(kernel, dilation, strict=True)]
    padding: tuple[int, ...] | str = "same"
    stride = (1,) * dims
    if not draw(st.booleans()):
        least = [max(0, -(-(r + 1 - s) // 2)) for r, s in zip(reach, size, strict=True)]
        padding = tuple(draw(st.integers(low, low + 2)) for low in least)
        stride = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    support = draw(st.sampled_from([Local(), Dilated(0), Dilated(1), Dilated(3), Full()]))
    side = st.integers(1, 12)
    block_shape = draw(st.none() | st.tuples(side, side))
    return ConvCase(
        channels, size, kernel, stride, padding, dilation, groups, draw(st.booleans()), support, block_shape
    )


def dense_matrix(conv: nn.Module, size: tuple[int, ...]) -> Tensor:
    """``[out_features, in_features]``, channels last: the images of the unit vectors, bias left out."""
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    features = conv.in_channels * int(numpy.prod(size))
    units = torch.eye(features, dtype=conv.weight.dtype).view(features, *size, conv.in_channels).movedim(-1, 1)
    with torch.no_grad():
        images = conv._conv_forward(units, conv.weight, None)
    return images.movedim(1, -1).reshape(features, -1).T


def element_map(case: ConvCase) -> Tensor:
    """int64 ``[out_features, in_features]``: the kernel entry of each entry of W, ``OFF_LOCAL`` or ``OUTSIDE``.

    Local entries are read off the convolution itself, by giving every kernel entry a number of its own.
    """
    conv = case.conv()
    with torch.no_grad():
        conv.weight.copy_(torch.arange(1.0, conv.weight.numel() + 1).view_as(conv.weight))
    local = dense_matrix(conv, case.size).round().long() - 1
    return torch.where(local >= 0, local, torch.where(in_support(case, conv), OFF_LOCAL, OUTSIDE))


def in_support(case: ConvCase, conv: nn.Module) -> Tensor:
    """bool ``[out_features, in_features]``, pixel by pixel."""
    out_size = conv(case.example(1)).shape[2:]
    low = [
        spread * (k - 1) // 2 if case.padding == "same" else 0 if case.padding == "valid" else int(pad)
        for k, spread, pad in zip(
            case.kernel, case.dilation, case.padding if isinstance(case.padding, tuple) else case.kernel, strict=True
        )
    ]
    inside = torch.zeros(*out_size, case.channels[1], *case.size, case.channels[0], dtype=torch.bool)
    everywhere = isinstance(case.support, Full)
    group_of_out = torch.arange(case.channels[1]) // (case.channels[1] // case.groups)
    group_of_in = torch.arange(case.channels[0]) // (case.channels[0] // case.groups)
    channels = torch.ones(case.channels[::-1], dtype=torch.bool)
    if not everywhere:
        channels = group_of_out[:, None] == group_of_in
    for p in itertools.product(*map(range, out_size)):
        for q in itertools.product(*map(range, case.size)):
            t = [q[d] + low[d] - case.stride[d] * p[d] for d in range(len(p))]
            last = [case.dilation[d] * (case.kernel[d] - 1) for d in range(len(p))]
            if isinstance(case.support, Dilated):
                radius = case.support.radius
                near = all(-radius <= x <= end + radius for x, end in zip(t, last, strict=True))
            else:
                near = all(
                    0 <= x <= end and x % spread == 0 for x, end, spread in zip(t, last, case.dilation, strict=True)
                )
            if near or everywhere:
                inside[(*p, slice(None), *q, slice(None))] = channels
    return inside.view(int(numpy.prod(out_size)) * case.channels[1], -1)
