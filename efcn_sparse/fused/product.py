"""The layer's product whose backward pass hands the factors of the gradient to an update, instead of returning it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from efcn_sparse.fused.inside import InsideUpdate
from efcn_sparse.fused.layer_update import LayerUpdate
from efcn_sparse.fused.refusals import refuse_data_parallel
from efcn_sparse.linear import SparseLinear
from efcn_sparse.ops import spmm
from efcn_sparse.pattern import BlockPattern

TakeFactors = Callable[[Tensor, Tensor], None]


class FusedProduct(torch.autograd.Function):
    """``x Wᵀ + bias``; backward calls ``take(dy, x)``: the gradient of W is ``dyᵀ x``.

    ``copy`` are the values in the dtype of x where theirs is another and the copy is to serve both products, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        copy: Tensor | None,
        layer: SparseLinear,
        name: str,
        take: TakeFactors,
    ) -> Tensor:
        ctx.save_for_backward(x, copy if ctx.needs_input_grad[0] else None)
        ctx.layer, ctx.name, ctx.take, ctx.version = layer, name, take, values._version
        weights = values.detach() if copy is None else copy
        return spmm(x, weights, layer.pattern, bias=bias, backend=layer.backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, copy = ctx.saved_tensors
        layer = ctx.layer
        if layer.values._version != ctx.version:
            raise RuntimeError(
                f"{ctx.name}: values were updated since the forward pass; with a fused optimizer each forward pass of "
                "a layer must be followed by its backward pass (no layer used twice, no accumulated gradients)"
            )
        dx = None
        if ctx.needs_input_grad[0]:
            # under autocast a copy, as in the forward pass
            values = layer.values.detach().to(dy.dtype) if copy is None else copy
            dx = spmm(dy, values, layer.pattern, transpose=True, backend=layer.backend)
        batch = math.prod(x.shape[:-1])
        rows = dy.reshape(batch, dy.shape[-1])
        ctx.take(rows, x.reshape(batch, x.shape[-1]))
        return dx, None, rows.sum(0) if ctx.needs_input_grad[2] else None, None, None, None, None


class UpdatingProduct:
    """The product of a layer whose values are updated in the backward pass."""

    def __init__(self, name: str, layer: SparseLinear, update: LayerUpdate | InsideUpdate, take: TakeFactors) -> None:
        self._name, self._layer, self._update, self._take = name or "model", layer, update, take

    def __call__(self, x: Tensor) -> Tensor:
        refuse_data_parallel(self._name)
        layer, copy = self._layer, None
        if not layer.values.requires_grad:  # frozen since: a torch optimizer would leave them alone too
            return spmm(x, layer.values, layer.pattern, bias=layer.bias, backend=layer.backend)
        if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))  # as the operation would, but saved as it is multiplied
            if self._update.keeps_cast and layer.values.dtype == torch.float32:
                copy = layer.values.detach().to(x.dtype)
        return FusedProduct.apply(x, layer.values, layer.bias, copy, layer, self._name, self._take)

    def follow(self, pattern: BlockPattern, source: Tensor, values: Tensor) -> Callable[[], None]:
        """See :class:`efcn_sparse.linear.Product`."""
        return self._update.follow(pattern, source, values)
