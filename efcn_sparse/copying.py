"""Deep copies of models, and of optimizers that are made of one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves


def copy_of(model: nn.Module, replaced: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """A deep copy of ``model``, with other things in place of some, by ``id``.

    What modules keep of earlier calls with gradients, which ``copy.deepcopy`` refuses, is copied without its history:
    weights that a hook computes anew at each call (pruning, the old weight_norm), and caches.

    Raises:
        ValueError: it cannot be copied, or a module keeps a view of a parameter, of which a copy would be none.
    """
    memo = dict(replaced)
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        for value in _kept_in(module):
            if isinstance(value, Tensor) and not value.is_leaf:
                if value._is_view() and id(value._base) in parameters:
                    viewed = parameters[id(value._base)]
                    raise ValueError(
                        f"model must make views of its parameters at each call, got one of {viewed!r} that "
                        f"{name or 'the model itself'!r} keeps"
                    )
                memo.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        name = type(error).__name__
        raise ValueError(f"model must be one that copy.deepcopy can copy, got {name}: {error}") from error


def _kept_in(module: nn.Module) -> list[Any]:
    """What a module holds itself, in tuples, lists and dicts too; not what its children hold."""
    try:
        return tree_leaves(vars(module))
    except RecursionError:  # a container that holds itself
        return list(vars(module).values())


def made_again(
    kind: Callable[..., Optimizer], model: nn.Module, argument: Any, settings: dict[str, Any], state: dict[str, Any]
) -> Optimizer:
    """``kind(model, argument, **settings)`` in the state of another: what ``__reduce__`` of an optimizer names."""
    optimizer = kind(model, argument, **settings)
    optimizer.load_state_dict(state)
    return optimizer
