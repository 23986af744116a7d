"""Deep copies of models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copy_of(model: nn.Module, replaced: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """A deep copy of ``model``, with other things in place of some, by ``id``.

    What modules keep of earlier calls with gradients, which ``copy.deepcopy`` refuses, is copied without its history:
    weights that a hook computes anew at each call (pruning, the old weight_norm), and caches.

    Raises:
        ValueError: it cannot be copied.
    """
    memo = dict(replaced)
    for module in model.modules():
        for value in tree_leaves(vars(module)):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        name = type(error).__name__
        raise ValueError(f"model must be one that copy.deepcopy can copy, got {name}: {error}") from error
