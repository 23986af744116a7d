"""The optimiser of a stage, and its state parameter by parameter, whether it is fused or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.linear import SparseLinear

State = dict[str, Tensor]


def make_optimiser(
    model: nn.Module, *, lr: float, momentum: float, weight_decay: float, fused: bool = False
) -> Optimizer:
    """SGD over all parameters of ``model``; with ``fused``, inside the backward pass where there are sparse layers.

    Law: the fused steps give the numbers of the others, bit by bit.
    """

    def sgd(parameters: list[nn.Parameter]) -> SGD:
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)

    if fused and any(isinstance(module, SparseLinear) for module in model.modules()):
        return FusedOptimizer(model, sgd)
    return sgd(list(model.parameters()))


def read_states(model: nn.Module, optimiser: Optimizer) -> dict[int, State]:
    """The optimiser's tensors by the place of their parameter in ``model.parameters()``, each of its parameter's shape.

    Those of a fused optimiser are joined from its slices, so they are what the unfused one would have.
    """
    found = {id(parameter): _tensors(state) for parameter, state in optimiser.state.items()}
    if isinstance(optimiser, FusedOptimizer):
        for values, slices in _slices(model, optimiser):
            parts = [found.get(id(part), {}) for part in slices]
            found[id(values)] = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    by_place = ((place, found.get(id(parameter), {})) for place, parameter in enumerate(model.parameters()))
    return {place: state for place, state in by_place if state}


def write_states(model: nn.Module, optimiser: Optimizer, states: Mapping[int, State]) -> None:
    """Bring the optimiser to what :func:`read_states` gave, of a fused optimiser or of an unfused one."""
    parameters = list(model.parameters())
    found = {
        id(parameters[place]): {key: _laid_out(tensor, parameters[place]) for key, tensor in state.items()}
        for place, state in states.items()
    }
    if not isinstance(optimiser, FusedOptimizer):
        for parameter in parameters:
            optimiser.state[parameter].update(found.get(id(parameter), {}))
        return
    for values, slices in _slices(model, optimiser):
        sizes = [len(part) for part in slices]
        cut = {key: tensor.split(sizes) for key, tensor in found.get(id(values), {}).items()}
        found |= {id(part): {key: tensors[i] for key, tensors in cut.items()} for i, part in enumerate(slices)}
    described = optimiser.state_dict()
    for inner, group in zip(_inner(described), optimiser.param_groups, strict=True):
        inner["state"] = {i: found[id(p)] for i, p in enumerate(group["params"]) if found.get(id(p))}
    optimiser.load_state_dict(described)


def _slices(model: nn.Module, optimiser: FusedOptimizer) -> list[tuple[nn.Parameter, list[nn.Parameter]]]:
    """The values of each sparse layer, and the parameters that the inner optimiser of the layer has in their place."""
    described = optimiser.state_dict()
    groups = optimiser.param_groups[len(_inner(described)) - len(described["layers"]) :]
    layers = [model.get_submodule(name) for name in described["layers"]]
    return [(layer.values, group["params"]) for layer, group in zip(layers, groups, strict=True)]  # type: ignore[misc]


def _inner(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The state dicts of the inner optimisers, in the order of the parameter groups, of which each has one."""
    rest = [] if described["rest"] is None else [described["rest"]]
    return [*rest, *described["layers"].values()]


def _tensors(state: Mapping[str, Any]) -> State:
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy in the memory format of the parameter, which decides the order of its sums."""
    if tensor.shape != like.shape:
        return tensor.to(like.device)
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=like.device).copy_(tensor)
