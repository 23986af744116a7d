"""An embedded convolution written out entry by entry, as dense matrices: nothing here is shared with the library."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch

OFF_LOCAL, OUTSIDE = -1, -2


@dataclass(frozen=True)
class Conv:
    """A 2-D convolution at one input size, and the blocks and support of its embedding."""

    channels: tuple[int, int]  # in, out
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 0
    groups: int = 1
    support: str = "local"  # local, dilated1, full
    block: tuple[int, int] = (4, 4)
    dilation: int = 1


CASES = {
    "aligned local": Conv((4, 4), (5, 5), (3, 3), padding=1),
    "aligned dilated": Conv((4, 8), (5, 4), (2, 3), padding=1, support="dilated1"),
    "aligned full": Conv((4, 4), (4, 4), (3, 3), padding=1, support="full"),
    "blocks span pixels": Conv((3, 4), (6, 6), (3, 3), padding=1, stride=2, block=(8, 9)),
    "blocks span pixels, full": Conv((1, 2), (5, 5), (3, 3), padding=2, support="full", block=(6, 4)),
    "blocks span pixels, dilated": Conv((2, 3), (5, 5), (2, 2), support="dilated1", block=(5, 3)),
    "ragged": Conv((5, 3), (4, 5), (3, 2), padding=1, support="dilated1", block=(8, 8)),
    "single entries": Conv((2, 2), (4, 4), (3, 3), padding=1, block=(1, 1)),
    "depthwise": Conv((4, 4), (4, 4), (3, 3), padding=1, groups=4),
    "groups, full": Conv((4, 4), (4, 3), (2, 2), groups=2, support="full"),
    "dilation": Conv((2, 4), (6, 6), (2, 2), dilation=2, support="dilated1", block=(4, 6)),
    "entries that only meet padding": Conv((2, 2), (2, 4), (5, 2), padding=3, stride=3, block=(2, 2)),
    "one pixel": Conv((4, 4), (3, 3), (3, 3)),
}


@functools.cache
def element_map(conv: Conv) -> np.ndarray:
    """int ``[out_features, in_features]``: the kernel entry that each entry of W copies, OFF_LOCAL or OUTSIDE."""
    (c_in, c_out), (height, width), (k_h, k_w) = conv.channels, conv.size, conv.kernel
    reach = [conv.dilation * (k - 1) for k in conv.kernel]
    out_h = (height + 2 * conv.padding - reach[0] - 1) // conv.stride + 1
    out_w = (width + 2 * conv.padding - reach[1] - 1) // conv.stride + 1
    margin = {"local": 0, "dilated1": 1, "full": None}[conv.support]
    group_in, group_out = c_in // conv.groups, c_out // conv.groups
    entries = np.full((out_h, out_w, c_out, height, width, c_in), OUTSIDE)
    for p_y, p_x, q_y, q_x in itertools.product(range(out_h), range(out_w), range(height), range(width)):
        t = (q_y + conv.padding - p_y * conv.stride, q_x + conv.padding - p_x * conv.stride)
        met = all(0 <= t[i] <= reach[i] and t[i] % conv.dilation == 0 for i in (0, 1))
        near = margin is None or all(-margin <= t[i] <= reach[i] + margin for i in (0, 1))
        for o, i in itertools.product(range(c_out), range(c_in)):
            in_group = o // group_out == i // group_in
            if met and in_group:
                tap = (t[0] // conv.dilation) * k_w + t[1] // conv.dilation
                entries[p_y, p_x, o, q_y, q_x, i] = (o * group_in + i % group_in) * k_h * k_w + tap
            elif conv.support == "full" or (conv.support == "dilated1" and near and in_group):
                entries[p_y, p_x, o, q_y, q_x, i] = OFF_LOCAL
    return entries.reshape(out_h * out_w * c_out, height * width * c_in)


def parts(dense: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W as the sum of its tied, untied and off-local parts, each a dense matrix of long doubles."""
    dense = dense.astype(np.longdouble)
    tied, untied = np.zeros_like(dense), np.zeros_like(dense)
    for entry in range(entries.max() + 1):
        copies = entries == entry
        if copies.any():
            tied[copies] = dense[copies].mean()
            untied[copies] = dense[copies] - tied[copies]
    return tied, untied, np.where(entries == OFF_LOCAL, dense, 0.0)


def blocks(dense: np.ndarray, entries: np.ndarray, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """``(values, maps)`` of the blocks that touch the support, row by row; entries past the edge are OUTSIDE."""
    (rows, cols), (height, width) = entries.shape, block
    padding = ((0, -rows % height), (0, -cols % width))
    dense = np.pad(dense, padding)
    entries = np.pad(entries, padding, constant_values=OUTSIDE)
    found = [
        (dense[r : r + height, c : c + width], entries[r : r + height, c : c + width])
        for r in range(0, rows, height)
        for c in range(0, cols, width)
        if (entries[r : r + height, c : c + width] != OUTSIDE).any()
    ]
    return np.stack([values for values, _ in found]), np.stack([maps for _, maps in found])


def classes(maps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(maps, class_starts, blocks_by_class)`` as Ties holds them, from one map per block."""
    distinct, class_of_block = np.unique(maps.reshape(len(maps), -1), axis=0, return_inverse=True)
    sizes = np.bincount(class_of_block.ravel(), minlength=len(distinct))
    return (
        torch.tensor(distinct.reshape(-1, *maps.shape[1:]), dtype=torch.int32),
        torch.tensor(np.concatenate([[0], np.cumsum(sizes)]), dtype=torch.int32),
        torch.tensor(np.argsort(class_of_block.ravel(), kind="stable"), dtype=torch.int32),
    )


@functools.cache
def _numbers(conv: Conv, dtype: torch.dtype, untied: float, off: float) -> tuple[np.ndarray, np.ndarray]:
    """A dense matrix of what ``dtype`` can hold, and the squared norms of its parts."""
    entries = element_map(conv)
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal(entries.max() + 1)
    dense = np.where(entries >= 0, kernel[entries], 0.0)
    dense += np.where(entries >= 0, untied, 0.0) * generator.standard_normal(dense.shape)
    dense += np.where(entries == OFF_LOCAL, off, 0.0) * generator.standard_normal(dense.shape)
    dense = torch.tensor(dense).to(dtype).double().numpy()
    return dense, np.array([float((part**2).sum()) for part in parts(dense, entries)])


class Embedded:
    """A case with random numbers: the dense matrix, its blocks as the backends take them, and the true parts."""

    def __init__(
        self,
        conv: Conv,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        *,
        untied: float = 0.5,
        off: float = 0.5,
    ) -> None:
        self.conv, self.entries = conv, element_map(conv)
        self.dense, self._squares = _numbers(conv, dtype, untied, off)
        values, maps = blocks(self.dense, self.entries, conv.block)
        self.outside = maps == OUTSIDE
        self.values = torch.tensor(values, dtype=dtype, device=device)
        self.ties = tuple(tensor.to(device) for tensor in classes(maps))

    def true_squares(self) -> np.ndarray:
        return self._squares

    def blocks_of(self, dense: np.ndarray) -> torch.Tensor:
        values, _ = blocks(dense.astype(np.float64), self.entries, self.conv.block)
        return torch.tensor(values, dtype=self.values.dtype, device=self.values.device)
