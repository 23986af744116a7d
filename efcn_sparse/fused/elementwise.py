"""Whether an optimizer updates each number by that number's own gradient and state, which slices need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

_ELEMENTWISE = (
    optim.SGD, optim.ASGD, optim.Adadelta, optim.Adagrad, optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam,
    optim.RAdam, optim.RMSprop, optim.Rprop,
)  # fmt: skip
_STEPS = 3


def check_elementwise(make: Callable[[list[nn.Parameter]], Optimizer], made: Optimizer) -> None:
    """Refuse an optimizer that would do something else to the slices of a layer than to the whole.

    Those of torch are known. Others step a tiny parameter once whole and once in two parts, which must agree.

    Raises:
        ValueError: it is not elementwise, or needs a closure.
    """
    kind = type(made)
    if kind in _ELEMENTWISE:
        return
    reason = None
    if isinstance(made, (optim.LBFGS, optim.Adafactor, optim.Muon)):
        reason = "its update of a number depends on others of the same layer"
    else:
        try:
            if not _agrees(make):
                reason = "a parameter in two parts is not updated as a whole one is"
        except Exception as error:
            reason = f"a tiny parameter, taken to see whether it is, could not be stepped ({error})"
    if reason is not None:
        raise ValueError(
            f"make must give an optimizer whose update of a number depends on its own gradient and state alone, got "
            f"{kind.__name__}: {reason}; use it without FusedOptimizer"
        )


@torch.no_grad()
def _agrees(make: Callable[[list[nn.Parameter]], Optimizer]) -> bool:
    generator = torch.Generator().manual_seed(0)
    unlike = torch.tensor([1.0, 1.0, 30.0, 30.0]).view(4, 1, 1)
    start = torch.randn((4, 2, 2), generator=generator) / unlike
    gradients = torch.randn((_STEPS, 4, 2, 2), generator=generator) * unlike
    whole, parts = (_stepped(make, start, gradients, size) for size in (4, 2))
    return torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)


def _stepped(make: Callable[[list[nn.Parameter]], Optimizer], start: Tensor, gradients: Tensor, size: int) -> Tensor:
    parts = [nn.Parameter(part.clone()) for part in start.split(size)]
    optimizer = make(parts)
    (group,) = optimizer.param_groups
    for gradient in gradients:
        before, after = settings_of(group), []
        for part, own in zip(parts, gradient.split(size), strict=True):  # one after another, as slices are
            restore_settings(group, before)
            part.grad = own.clone()
            optimizer.step()
            part.grad = None
            after.append(settings_of(group))
        if any(one != after[0] for one in after):
            raise ValueError("what it keeps for all parameters depends on their gradients")
    return torch.cat([part.detach() for part in parts])


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """All of a parameter group but its parameters: settings, and what some optimizers count there."""
    return {key: setting for key, setting in group.items() if key != "params"}


def restore_settings(group: dict[str, Any], settings: dict[str, Any]) -> None:
    """Make ``settings`` all that a parameter group has beside its parameters."""
    for key in group.keys() - settings.keys() - {"params"}:
        del group[key]
    group.update(settings)
