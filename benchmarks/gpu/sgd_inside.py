"""Plain SGD inside the gradient's own kernel: values ← values − lr · dyᵀ x, with no gradient and no second pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.pattern import BlockPattern


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: SparseLinear, rate: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.rate = layer, rate
        return spmm(x, layer.values.detach(), layer.pattern, bias=bias, backend=layer.backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        values = layer.values.detach()
        dx = None
        if ctx.needs_input_grad[0]:  # before the values move
            dx = spmm(dy, values, layer.pattern, transpose=True, backend=layer.backend)
        sddmm(dy, x, layer.pattern, alpha=-ctx.rate, beta=1.0, out=values, backend=layer.backend)
        return dx, dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None, None


class SteppingProduct:
    """The product of a layer that steps in its backward pass; values have the dtype of x."""

    def __init__(self, layer: SparseLinear, rate: float) -> None:
        self._layer, self._rate = layer, rate

    def __call__(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self._layer.bias, self._layer, self._rate)

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """Nothing is kept for blocks."""
        return lambda: None


def step_inside(model: nn.Module, make: Callable[[Any], torch.optim.Optimizer], rate: float) -> torch.optim.Optimizer:
    """Let every sparse layer step by itself; the optimiser of all other parameters."""
    inside = set()
    for layer in model.modules():
        if isinstance(layer, SparseLinear):
            layer.product = SteppingProduct(layer, rate)
            inside.add(layer.values)
    return make([parameter for parameter in model.parameters() if parameter not in inside])
