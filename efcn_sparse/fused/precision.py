"""In which precision an optimizer sees values that are stored in fewer bits."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from efcn_sparse.pattern.slices import RowSlice

MASTER = "master"  # the name of the fp32 copies in the optimizer's state


class Storage(Protocol):
    """Between a slice of the stored values and the parameter that the optimizer steps."""

    def held(self, values: Tensor) -> Tensor:
        """The tensor of the parameter between steps."""

    def take(self, parameter: nn.Parameter, values: Tensor, part: RowSlice, state: dict[str, Any]) -> None:
        """Make ``parameter`` current before a step; ``state`` is that of all the values."""

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Write ``parameter`` back after a step."""


class Native:
    """The optimizer steps the stored values themselves."""

    def held(self, values: Tensor) -> Tensor:
        return values

    def take(self, parameter: nn.Parameter, values: Tensor, part: RowSlice, state: dict[str, Any]) -> None:
        pass

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        pass


class Master:
    """The optimizer steps fp32 copies; the stored values are their roundings."""

    def held(self, values: Tensor) -> Tensor:
        return values.new_empty(0, dtype=torch.float32)

    def take(self, parameter: nn.Parameter, values: Tensor, part: RowSlice, state: dict[str, Any]) -> None:
        parameter.data = state[MASTER][part.blocks]

    def put(self, parameter: nn.Parameter, values: Tensor) -> None:
        values.copy_(parameter.detach())

    @staticmethod
    def refresh(values: Tensor, state: dict[str, Any]) -> None:
        """Make the copies that are absent, or whose roundings ``values`` are not: somebody else has written these."""
        master = state.get(MASTER)
        if master is None:
            state[MASTER] = values.float()
        else:
            master.copy_(torch.where(master.to(values.dtype) == values, master, values.float()))


class Stochastic:
    """The optimizer steps an fp32 copy that lives for one step; bf16 values are its stochastic rounding.

    A step far below the spacing of bf16 numbers would vanish in rounding to nearest; here it survives on average:
    E[stored] is the fp32 result.
    """

    def held(self, values: Tensor) -> Tensor:
        if values.dtype != torch.bfloat16:
            raise ValueError(f"precision 'stochastic' must be used with bfloat16 values, got {values.dtype}")
        return values.new_empty(0, dtype=torch.float32)

    def take(self, parameter: nn.Parameter, values: Tensor, part: RowSlice, state: dict[str, Any]) -> None:
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
