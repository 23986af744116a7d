"""Modules of ours in the graphs of ``torch.fx``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def as_node(module: nn.Module, *inputs: Any) -> Any:
    """The call of ``module`` as one node of the graph that is traced; None where nothing is, or it is the traced model.

    So a module stands in a graph as the one of torch does whose place it has: under its own name in each of its calls,
    for those who ask a graph for the outputs of modules.
    """
    if not isinstance(inputs[0], torch.fx.Proxy):
        return None
    tracer: Any = inputs[0].tracer
    try:
        path = tracer.path_of_module(module)
    except NameError:
        return None
    return tracer.create_proxy("call_module", path, inputs, {}) if path else None
