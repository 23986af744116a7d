"""Plain SGD inside the product that would form the gradient: ``values ← (1 − lr · decay) · values − lr · dyᵀ x``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from efcn_sparse.fused.layer_update import MakeOptimizer
from efcn_sparse.fused.product import Gradient, refuse_sharded
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm
from efcn_sparse.pattern import BlockPattern

_MUST_BE_OFF = ("momentum", "dampening", "nesterov", "differentiable")


class InsideUpdate:
    """Steps of a layer's values by one SDDMM into them; the optimizer holds the settings and is never stepped."""

    keeps_cast = True  # 2 bytes a weight held from forward to backward, for the 6 that casting again would move
    has_slices = False

    def __init__(self, name: str, layer: SparseLinear, make: MakeOptimizer) -> None:
        self.name, self._layer = name or "model", layer
        self.optimizer: torch.optim.Optimizer = make([layer.values])
        scaling_of(self.name, self.optimizer)
        self.group: dict[str, Any] = self.optimizer.param_groups[0]
        self.state: dict[str, Any] = {}

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """Nothing is kept for blocks; see :class:`efcn_sparse.linear.Product`."""
        return lambda: None

    def squared_norm(self, gradient: Gradient) -> Tensor:
        """Not there: a step inside knows no gradient."""
        raise NotImplementedError

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Plain SGD has none."""

    @torch.no_grad()
    def step(self, gradient: Gradient, scale: Tensor | None = None) -> None:
        """One step by the settings that the optimizer has now."""
        self.optimizer.param_groups[0] = self.group
        alpha, beta = scaling_of(self.name, self.optimizer)
        if scale is not None:
            alpha *= float(scale)
        layer = self._layer
        refuse_sharded(self.name, layer.values)
        values = layer.values
        for a, b in gradient.factors:
            sddmm(a, b, layer.pattern, alpha=alpha, beta=beta, out=values, backend=layer.backend)
            beta = 1.0
        for held in gradient.held:
            values.mul_(beta).add_(held, alpha=alpha)
            beta = 1.0


def scaling_of(name: str, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """``(alpha, beta)`` of the step ``values ← beta · values + alpha · gradient``.

    Raises:
        TypeError: the optimizer is not ``torch.optim.SGD`` itself, or the host cannot read its rate.
        ValueError: it has momentum, more than one parameter group, or hooks, which nobody would call.

    Example:
        >>> weights = torch.nn.Parameter(torch.zeros(2))
        >>> scaling_of("layer", torch.optim.SGD([weights], lr=0.5, weight_decay=0.5, maximize=True))
        (0.5, 0.75)
    """
    if type(optimizer) is not torch.optim.SGD:
        raise TypeError(f"{name}: make must give torch.optim.SGD for a step inside, got {type(optimizer).__name__}")
    if len(optimizer.param_groups) != 1:
        raise ValueError(f"{name}: SGD must have one parameter group, got {len(optimizer.param_groups)}")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise ValueError(f"{name}: SGD must have no hooks, since a step inside never calls its step()")
    group = optimizer.param_groups[0]
    for setting in _MUST_BE_OFF:
        if group[setting]:
            raise ValueError(f"{name}: {setting} of SGD must be {type(group[setting])(0)}, got {group[setting]}")
    rate, decay = (_number(name, setting, group[setting]) for setting in ("lr", "weight_decay"))
    return (rate if group["maximize"] else -rate), 1.0 - rate * decay


def _number(name: str, setting: str, value: float | Tensor) -> float:
    if isinstance(value, Tensor) and value.device.type != "cpu":
        # reading it would wait for the device, and cannot happen in a graph's capture
        raise TypeError(f"{name}: {setting} of SGD must be a number or a CPU tensor, got a tensor on {value.device}")
    return float(value)
