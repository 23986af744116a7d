"""An optimizer's tensors by the place of their parameter in ``model.parameters()``, in the storage they have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from efcn_sparse.checkpoint.fill import read_entry
from efcn_sparse.checkpoint.shard_file import Entry
from efcn_sparse.fused import FusedOptimizer, set_state, state_of

State = dict[str, Tensor]


def live_states(model: nn.Module, optimizer: Optimizer) -> dict[int, State]:
    """The optimizer's tensors by the place of their parameter; none is copied. Fused or not, they are the same."""
    states = {}
    for place, parameter in enumerate(model.parameters()):
        state = {key: entry for key, entry in state_of(optimizer, parameter).items() if isinstance(entry, Tensor)}
        if state:
            states[place] = state
    return states


def plain_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What the optimizer keeps beside tensors, as JSON has it: settings that differ from its defaults, and scalars.

    Groups with the same settings are told once, so that it does not matter whether updates are fused. It is empty for
    the library's own runs.
    """
    groups = [
        {
            key: value
            for key, value in group.items()
            if key != "params" and _is_plain(value) and not _same(value, optimizer.defaults.get(key))
        }
        for group in optimizer.param_groups
    ]
    groups = groups[:1] if all(group == groups[0] for group in groups) else groups
    states = {}
    for place, parameter in enumerate(model.parameters()):
        state = {key: value for key, value in state_of(optimizer, parameter).items() if _is_plain(value)}
        if state:
            states[str(place)] = state
    return {name: found for name, found in (("groups", groups), ("state", states)) if any(found)}


def restore_plain_state(model: nn.Module, optimizer: Optimizer, told: Mapping[str, Any]) -> None:
    """Bring the settings and scalars of :func:`plain_state` back."""
    groups = told.get("groups", [])
    for place, group in enumerate(optimizer.param_groups if groups else ()):
        for key, value in groups[0 if len(groups) == 1 else place].items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    parameters = list(model.parameters())
    for key, state in told.get("state", {}).items():
        parameter = parameters[int(key)]
        set_state(optimizer, parameter, {**state_of(optimizer, parameter), **state})


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and value == default


def check_states(model: nn.Module, optimizer: Optimizer, entries: Mapping[int, Mapping[str, Entry]]) -> None:
    """Raise ``ValueError`` if a parameter is missing, or one of ``entries`` is neither of its shape nor a scalar.

    An optimizer that is not known to keep numbers one by one may keep others too.
    """
    one_by_one = isinstance(optimizer, (SGD, Adam, FusedOptimizer))
    parameters = list(model.parameters())
    for place, state in entries.items():
        if place >= len(parameters):
            raise ValueError(f"the optimizer must have parameter {place}, got {len(parameters)} parameters")
        shape = tuple(parameters[place].shape)
        for key, entry in state.items():
            if one_by_one and entry.shape not in (shape, ()):
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


def _room(there: Any, parameter: Tensor, entry: Entry) -> Tensor:
    """A tensor for ``entry`` in the memory format of its parameter, which decides the order of sums."""
    if not entry.shape:
        return read_entry(entry)
    if isinstance(there, Tensor) and (there.shape, there.dtype) == (parameter.shape, entry.dtype):
        return there
    if entry.shape != tuple(parameter.shape):
        return torch.empty(entry.shape, dtype=entry.dtype, device=parameter.device)
    return torch.empty_strided(parameter.shape, parameter.stride(), dtype=entry.dtype, device=parameter.device)
