"""What must follow a layer's blocks to their new places: values, their gradient, and the optimizer's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Move:
    """New contents for tensors shaped like ``values``, all made before the first is written.

    Args:
        source: int64 ``[nnz_blocks]``: which old block each new block is; -1: none, it starts at zero.
    """

    def __init__(self, source: Tensor) -> None:
        self._new = (source < 0).nonzero().squeeze(1)
        self._source = source.clamp(min=0)
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, tensor: Tensor) -> None:
        """Prepare ``tensor``; nothing is written yet."""
        self._pairs.append((tensor, self.made_of(tensor.detach())))

    def made_of(self, tensor: Tensor) -> Tensor:
        """The blocks of ``tensor`` at their new places."""
        if not len(tensor):
            return tensor.new_zeros((len(self._source), *tensor.shape[1:]))
        moved = tensor.index_select(0, self._source)
        return moved.index_fill_(0, self._new, 0)

    @torch.no_grad()
    def commit(self) -> None:
        """Write all of it, without any allocation; may be repeated."""
        for tensor, moved in self._pairs:
            tensor.copy_(moved)


def state_like_values(optimizer: torch.optim.Optimizer, values: nn.Parameter) -> list[Tensor]:
    """The tensors of an optimizer's state that have one number for each of ``values``.

    Raises:
        ValueError: the optimizer does not hold ``values``, or has state of another shape that belongs to its blocks.
    """
    if not any(values is parameter for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(f"optimizer must hold layer.values, got {type(optimizer).__name__} without them")
    state: dict[str, Any] = optimizer.state.get(values, {})
    found = []
    for key, entry in state.items():
        if isinstance(entry, Tensor) and entry.shape == values.shape:
            found.append(entry)
        elif (isinstance(entry, Tensor) and entry.dim() == 0) or isinstance(entry, (bool, int, float, str, type(None))):
            continue
        else:
            what = f"shape {list(entry.shape)}" if isinstance(entry, Tensor) else type(entry).__name__
            raise ValueError(
                f"optimizer must keep scalars or tensors shaped like values {list(values.shape)}, "
                f"got state {key!r} of {what}"
            )
    return found
