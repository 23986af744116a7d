"""An optimizer's tensors parameter by parameter, whether it is fused or not, in the storage they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.checkpoint.fill import read_entry
from efcn_sparse.checkpoint.shard_file import Entry, Joined, Stored
from efcn_sparse.fused import FusedOptimizer

State = dict[str, Stored]


def live_states(model: nn.Module, optimizer: Optimizer) -> dict[int, State]:
    """The optimizer's tensors by the place of their parameter in ``model.parameters()``; none is copied.

    Those of a fused optimizer's slices are joined, so they have the shapes that the unfused one's would have. Scalars
    are the same in all slices and come once.
    """
    states: dict[int, State] = {}
    live = optimizer.state
    for place, holders in _holders(model, optimizer).items():
        found = [_tensors(live.get(holder, {})) for holder in holders]
        state = {key: _joined([one[key] for one in found]) for key in (found[0] if found else {})}
        if state:
            states[place] = state
    return states


def check_states(model: nn.Module, optimizer: Optimizer, entries: Mapping[int, Mapping[str, Entry]]) -> None:
    """Raise ``ValueError`` if a parameter is missing, or one of ``entries`` is neither of its shape nor a scalar."""
    holders = _holders(model, optimizer)
    for place, state in entries.items():
        if place not in holders:
            raise ValueError(f"the optimizer must have parameter {place}, got {len(holders)} parameters")
        rows = sum(holder.shape[0] for holder in holders[place]) if holders[place][0].dim() else None
        shape = (*(() if rows is None else (rows,)), *holders[place][0].shape[1:])
        for key, entry in state.items():
            if entry.shape not in (shape, ()):
                raise ValueError(f"{key} of parameter {place} must be {list(shape)}, got {list(entry.shape)}")


def make_room(
    model: nn.Module, optimizer: Optimizer, entries: Mapping[int, Mapping[str, Entry]]
) -> dict[int, dict[str, Stored]]:
    """Give ``optimizer`` the tensors that :func:`live_states` would name for ``entries``, and return those to fill.

    Tensors of the right shape and dtype stay where they are. Scalars are read at once. Call :func:`check_states` first.
    """
    holders = _holders(model, optimizer)
    live = optimizer.state
    made = {
        holder: {key: _room(live.get(holder, {}).get(key), holder, entry) for key, entry in state.items()}
        for place, state in entries.items()
        for holder in holders[place]
    }
    _install(optimizer, made)
    states = live_states(model, optimizer)
    return {
        place: {key: states[place][key] for key, entry in state.items() if entry.shape}
        for place, state in entries.items()
    }


def hand_over(model: nn.Module, optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Make ``states``, by the place of each parameter, those of ``optimizer``; a fused one gets them cut into slices.

    Tensors are taken over as they are where they lie in memory as their parameter does, so hand over ones of your own.
    A parameter that the optimizer does not train is left out.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    made: dict[Tensor, dict[str, Tensor]] = {}
    for place, holders in _holders(model, optimizer).items():
        for key, tensor in states.get(place, {}).items() if id(holders[0]) in trained else ():
            sizes = [len(holder) for holder in holders] if tensor.dim() else []
            cut = tensor.split(sizes) if sizes else [tensor.clone() for _ in holders]
            for holder, part in zip(holders, cut, strict=True):
                made.setdefault(holder, {})[key] = _laid_out(part, holder) if sizes else part
    _install(optimizer, made)


def _install(optimizer: Optimizer, made: Mapping[Tensor, dict[str, Tensor]]) -> None:
    if not isinstance(optimizer, FusedOptimizer):
        for holder, tensors in made.items():
            optimizer.state[holder].update(tensors)
        return
    described = optimizer.state_dict()
    for inner, group in zip(_inner(described), optimizer.param_groups, strict=True):
        inner["state"] = {i: made[p] for i, p in enumerate(group["params"]) if p in made}
    optimizer.load_state_dict(described)


def _holders(model: nn.Module, optimizer: Optimizer) -> dict[int, list[Tensor]]:
    """By the place of each parameter, those that the optimizer has for it: itself, or its slices in their order."""
    slices: dict[int, list[Tensor]] = {}
    if isinstance(optimizer, FusedOptimizer):
        described = optimizer.state_dict()
        groups = optimizer.param_groups[len(_inner(described)) - len(described["layers"]) :]
        for name, group in zip(described["layers"], groups, strict=True):
            slices[id(model.get_submodule(name).values)] = group["params"]
    return {place: slices.get(id(one), [one]) for place, one in enumerate(model.parameters())}


def _inner(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The state dicts of the inner optimizers, in the order of the parameter groups, of which each has one."""
    rest = [] if described["rest"] is None else [described["rest"]]
    return [*rest, *described["layers"].values()]


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}


def _joined(parts: list[Tensor]) -> Stored:
    return parts[0] if len(parts) == 1 or not parts[0].dim() else Joined(tuple(parts))


def _room(there: Any, holder: Tensor, entry: Entry) -> Tensor:
    """A tensor for ``entry`` in the memory format of its parameter, which decides the order of sums."""
    if not entry.shape:
        return read_entry(entry)
    if isinstance(there, Tensor) and (there.shape, there.dtype) == (holder.shape, entry.dtype):
        return there
    return torch.empty_strided(holder.shape, holder.stride(), dtype=entry.dtype, device=holder.device)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    if (tensor.stride(), tensor.device) == (like.stride(), like.device):
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=like.device).copy_(tensor)
