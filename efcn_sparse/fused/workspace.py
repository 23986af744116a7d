"""How much memory passes over the gradient of a layer take, and the buffers of the updates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

WORKSPACE_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}  # one slice of a gradient, used while it is in the cache
SCORING_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # tiles of a gradient, or of its Gram matrices, to be measured


def workspace_bytes(device: torch.device, table: Mapping[str, int] = SCORING_BYTES) -> int:
    """The bytes that a pass may take at a time on ``device``, whatever the size of the layer."""
    return table.get(device.type, table["cuda"])


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
