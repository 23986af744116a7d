"""An optimizer's tensors by the place of their parameter in ``model.parameters()``, in the storage they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.checkpoint.fill import read_entry
from efcn_sparse.checkpoint.shard_file import Entry
from efcn_sparse.fused import set_state, state_of

State = dict[str, Tensor]


def live_states(model: nn.Module, optimizer: Optimizer) -> dict[int, State]:
    """The optimizer's tensors by the place of their parameter; none is copied. Fused or not, they are the same."""
    states = {}
    for place, parameter in enumerate(model.parameters()):
        state = {key: entry for key, entry in state_of(optimizer, parameter).items() if isinstance(entry, Tensor)}
        if state:
            states[place] = state
    return states


def check_states(model: nn.Module, entries: Mapping[int, Mapping[str, Entry]]) -> None:
    """Raise ``ValueError`` if a parameter is missing, or one of ``entries`` is neither of its shape nor a scalar."""
    parameters = list(model.parameters())
    for place, state in entries.items():
        if place >= len(parameters):
            raise ValueError(f"the optimizer must have parameter {place}, got {len(parameters)} parameters")
        shape = tuple(parameters[place].shape)
        for key, entry in state.items():
            if entry.shape not in (shape, ()):
                raise ValueError(f"{key} of parameter {place} must be {list(shape)}, got {list(entry.shape)}")


def make_room(model: nn.Module, optimizer: Optimizer, entries: Mapping[int, Mapping[str, Entry]]) -> dict[int, State]:
    """Give ``optimizer`` the tensors that :func:`live_states` would name for ``entries``, and return those to fill.

    Tensors of the right shape and dtype stay where they are. Scalars are read at once. Call :func:`check_states` first.
    """
    parameters, room = list(model.parameters()), {}
    for place, state in entries.items():
        parameter = parameters[place]
        there = state_of(optimizer, parameter)
        made = {key: _room(there.get(key), parameter, entry) for key, entry in state.items()}
        set_state(optimizer, parameter, {**there, **made})
        room[place] = {key: made[key] for key, entry in state.items() if entry.shape}
    return room


def hand_over(model: nn.Module, optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Make ``states``, by the place of each parameter, those of ``optimizer``.

    Tensors are taken over as they are where they lie in memory as their parameter does, so hand over ones of your own.
    A parameter that the optimizer does not train is left out.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for place, parameter in enumerate(model.parameters()):
        if place in states and id(parameter) in trained:
            laid_out = {key: _laid_out(tensor, parameter) for key, tensor in states[place].items()}
            set_state(optimizer, parameter, {**state_of(optimizer, parameter), **laid_out})


def _room(there: Any, parameter: Tensor, entry: Entry) -> Tensor:
    """A tensor for ``entry`` in the memory format of its parameter, which decides the order of sums."""
    if not entry.shape:
        return read_entry(entry)
    if isinstance(there, Tensor) and (there.shape, there.dtype) == (parameter.shape, entry.dtype):
        return there
    return torch.empty_strided(parameter.shape, parameter.stride(), dtype=entry.dtype, device=parameter.device)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    if not tensor.dim() or (tensor.stride(), tensor.device) == (like.stride(), like.device):
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=like.device).copy_(tensor)
