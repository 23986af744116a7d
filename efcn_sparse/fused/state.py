"""What an optimizer keeps for a parameter: named, replaced, and moved with its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# what is not zero in the state of a parameter that has not been stepped: the setting that it starts from
_FRESH: dict[tuple[type[Optimizer], str], str] = {
    (torch.optim.Rprop, "step_size"): "lr",
    (torch.optim.Adagrad, "sum"): "initial_accumulator_value",
}


def state_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """What ``optimizer``, fused or not, keeps for a parameter: tensors and scalars by name; {} before its first step.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.sum().backward(), optimizer.step()
        (None, None)
        >>> state_of(optimizer, weight)
        {'momentum_buffer': tensor([1., 1.])}
    """
    return optimizer.state.get(parameter, {})


def set_state(optimizer: Optimizer, parameter: nn.Parameter, state: Mapping[str, Any]) -> None:
    """Make ``state`` what ``optimizer``, fused or not, keeps for a parameter; tensors are taken over as they are."""
    take_state = getattr(optimizer, "take_state", None)  # a fused optimizer's, which gives each slice its part
    if take_state is not None:
        take_state(parameter, state)
    else:
        optimizer.state[parameter] = dict(state)


def moved_blocks(tensor: Tensor, source: Tensor, fresh: float = 0.0) -> Tensor:
    """The blocks ``tensor[source]``, and ``fresh`` where ``source`` is -1."""
    if not len(tensor):
        return tensor.new_full((len(source), *tensor.shape[1:]), fresh)
    moved = tensor.index_select(0, source.clamp(min=0))
    return moved.index_fill_(0, (source < 0).nonzero().squeeze(1), fresh)


def fresh_state(optimizer: Optimizer, group: Mapping[str, Any], key: str) -> float:
    """What ``key`` of a number's state is before its first step."""
    for (kind, name), setting in _FRESH.items():
        if isinstance(optimizer, kind) and key == name:
            return float(group[setting])
    return 0.0
