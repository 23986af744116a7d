"""Memory for one gradient slice at a time, shared by all layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """One buffer for each device and dtype, as large as the largest slice that any layer asked for.

    Layers are updated one after another (autograd has one thread for each device), so they can share it.

    Example:
        >>> workspace = Workspace()
        >>> workspace.reserve(torch.empty(0), 6), workspace.reserve(torch.empty(0), 4)
        (None, None)
        >>> workspace.take(torch.empty(0), (2, 3)).shape, workspace.nbytes
        (torch.Size([2, 3]), 24)
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def reserve(self, like: Tensor, numel: int) -> None:
        """See that ``numel`` numbers of the device and dtype of ``like`` are there."""
        key = (like.device, like.dtype)
        if key not in self._buffers or self._buffers[key].numel() < numel:
            self._buffers[key] = like.new_empty(numel)

    def take(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A contiguous tensor of that memory, which grows if need be; what it holds is what the last user left."""
        self.reserve(like, math.prod(shape))
        return self._buffers[like.device, like.dtype][: math.prod(shape)].view(shape)

    @property
    def nbytes(self) -> int:
        """All buffers together."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
