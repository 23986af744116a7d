"""In which precision an optimizer sees values that are stored in fewer bits."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Storage(Protocol):
    """Between the stored values and the parameter that the optimizer steps."""

    @property
    def keeps_copies(self) -> bool:
        """Whether the parameter knows more than the values."""

    def held(self, values: Tensor) -> Tensor:
        """The tensor of the optimizer's parameter for a slice of the values."""

    def take(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Make ``parameter`` current before a step."""

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Write ``parameter`` back after a step."""


class Native:
    """The optimizer steps the stored values themselves."""

    keeps_copies = False

    def held(self, values: Tensor) -> Tensor:
        return values

    def take(self, parameter: nn.Parameter, values: Tensor) -> None:
        pass

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        pass


class Master:
    """The optimizer steps fp32 copies; the stored values are their roundings."""

    keeps_copies = True

    def held(self, values: Tensor) -> Tensor:
        return values.float()

    def take(self, parameter: nn.Parameter, values: Tensor) -> None:
        pass

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        values.copy_(parameter.detach())


class Stochastic:
    """The optimizer steps an fp32 copy that lives for one step; bf16 values are its stochastic rounding.

    A step far below the spacing of bf16 numbers would vanish in rounding to nearest; here it survives on average:
    E[stored] is the fp32 result.
    """

    keeps_copies = False

    def held(self, values: Tensor) -> Tensor:
        if values.dtype != torch.bfloat16:
            raise ValueError(f"precision 'stochastic' must be used with bfloat16 values, got {values.dtype}")
        return values.new_empty(0, dtype=torch.float32)

    def take(self, parameter: nn.Parameter, values: Tensor) -> None:
        parameter.data = values.float()

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        values.copy_(round_stochastically(parameter.detach()))
        parameter.data = parameter.data.new_empty(0)


def round_stochastically(x: Tensor) -> Tensor:
    """fp32 numbers as one of their two neighbors in bf16, drawn so that the mean is kept.

    Example:
        >>> drawn = round_stochastically(torch.full((10000,), 1.0 + 2**-9))
        >>> sorted(set(drawn.tolist())), abs(float(drawn.float().mean()) - (1 + 2**-9)) < 3e-4
        ([1.0, 1.0078125], True)
    """
    bits = x.contiguous().view(torch.int32)
    dithered = bits + torch.randint_like(bits, 1 << 16)
    kept = torch.where(x.isfinite(), dithered, bits) & -(1 << 16)
    return kept.view(torch.float32).to(torch.bfloat16)


STORAGE: dict[str, type[Storage]] = {"native": Native, "master": Master, "stochastic": Stochastic}
