"""One tensor whose rows lie in several places, as the slices of a fused optimizer's state do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """What ``torch.cat(parts)`` would be, without making it: files are written and read part by part.

    Attributes:
        parts: one or more tensors of one dtype, alike but for the first dimension.

    Raises:
        ValueError: the parts do not fit together.

    Example:
        >>> Joined((torch.ones(2, 3), torch.ones(1, 3))).shape
        (3, 3)
    """

    parts: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        kinds = {(part.dtype, tuple(part.shape[1:]), part.dim() > 0) for part in self.parts}
        if len(kinds) != 1 or not next(iter(kinds))[2]:
            got = [f"{part.dtype} {list(part.shape)}" for part in self.parts]
            raise ValueError(f"parts must be alike but for the first dimension, got {got}")

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


Stored = Tensor | Joined


def parts_of(tensor: Stored) -> tuple[Tensor, ...]:
    """The tensors that hold its numbers, in their order."""
    return tensor.parts if isinstance(tensor, Joined) else (tensor,)
