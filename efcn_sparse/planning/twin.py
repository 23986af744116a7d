"""A model's embedded twin on the meta device, without patterns: what a step holds depends on their sizes alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from efcn_sparse.activation import IN_LESS_MEMORY, exchange
from efcn_sparse.copying import copy_of
from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.embedding.example_run import Example, run_embedded
from efcn_sparse.embedding.plan import EmbeddingPlan, LayerPlan
from efcn_sparse.planning.fused_cost import FusedCost
from efcn_sparse.planning.kernel_rules import sddmm_copy, spmm_copy
from efcn_sparse.planning.live_memory import LiveMemory, meta_copy

_BYTES_PER_BLOCK = 8 * 4  # two walks, masks and classes, and columns once more as a layer's buffer, int32
_BYTES_PER_KERNEL_ENTRY = 4 + 8  # its place in the maps where blocks divide the channels, and how many copies it has


class PlannedLinear(nn.Module):
    """In the place of a :class:`SparseLinear`: allocates what it would, and computes nothing.

    Attributes:
        memory: counts the FLOPs, while a step is simulated.
        fusion: what updates inside the backward pass cost; None: the values get a gradient.
    """

    def __init__(self, layer: LayerPlan, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.memory: LiveMemory | None = None
        self.fusion: FusedCost | None = None
        shape = (layer.stored_blocks, *layer.block_shape)
        values = torch.empty(shape, dtype=layer.dtype, device="meta")
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(values.new_empty(layer.shape[0]), requires_grad=bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return _PlannedProduct.apply(x, self.values, self.bias, self)

    def count(self, products: int, batch: int) -> None:
        """Add the FLOPs of so many products with the entries in the support."""
        if self.memory is not None:
            entries = self.layer.support_weights - self.layer.rank * sum(self.layer.shape)
            self.memory.flops += products * 2 * batch * entries


class _PlannedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, linear: PlannedLinear) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.linear, ctx.own = linear, values is linear.values
        height, width = linear.layer.block_shape
        copied = x.new_empty(spmm_copy(x, width, height), dtype=torch.uint8)
        y = x.new_empty((x.shape[0], linear.layer.shape[0]))
        del copied
        linear.count(1, x.shape[0])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, _), linear = ctx.saved_tensors, ctx.linear
        layer, batch = linear.layer, x.shape[0]
        height, width = layer.block_shape
        linear.count(sum(ctx.needs_input_grad[:2]), batch)
        dx = dvalues = dbias = None
        if ctx.needs_input_grad[0]:
            copied = dy.new_empty(spmm_copy(dy, height, width), dtype=torch.uint8)
            dx = torch.empty((batch, layer.shape[1]), dtype=dy.dtype, device="meta")
            del copied
        if ctx.needs_input_grad[1]:
            copied = x.new_empty(sddmm_copy(x, width, height, adds=linear.fusion is not None), dtype=torch.uint8)
            if linear.fusion is not None and ctx.own:
                update = x.new_empty(linear.fusion.update, dtype=torch.uint8)
                del update
            else:
                dvalues = torch.empty(linear.values.shape, dtype=layer.dtype, device="meta")
            del copied
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0)
        return dx, dvalues, dbias, None


class PlannedLowRank(nn.Module):
    """In the place of a :class:`LowRankPart`: the narrow products as they are, those with stored blocks as planned."""

    def __init__(self, layer: LayerPlan, requires_grad: bool) -> None:
        super().__init__()
        sides = [torch.empty((side, layer.rank), dtype=layer.dtype, device="meta") for side in layer.shape]
        self.left, self.right = (nn.Parameter(side, requires_grad=requires_grad) for side in sides)

    def forward(self, x: Tensor, linear: PlannedLinear) -> Tensor:
        stored = _PlannedSampled.apply(self.left, self.right, linear)
        return (x @ self.right) @ self.left.T - _PlannedProduct.apply(x, stored, None, linear)


class _PlannedSampled(torch.autograd.Function):
    """``U Vᵀ`` at the stored blocks: a copy of the size of ``values``."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, linear: PlannedLinear) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.linear = linear
        linear.count(1, left.shape[1])
        return torch.empty(linear.values.shape, dtype=linear.layer.dtype, device="meta")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        ctx.linear.count(2, left.shape[1])
        return torch.empty_like(left), torch.empty_like(right), None


class PlannedConv(EmbeddedConv):
    """In the place of an :class:`EmbeddedConv`, without its weights; it runs as that does."""

    def __init__(self, conv: nn.Module, layer: LayerPlan) -> None:
        nn.Module.__init__(self)
        assert isinstance(conv, _ConvNd)
        self.geometry = layer.geometry
        layer.geometry.describe(self)
        self.add_module("linear", PlannedLinear(layer, conv.weight, conv.bias))
        self.add_module("low_rank", PlannedLowRank(layer, conv.weight.requires_grad) if layer.rank else None)


def meta_twin(model: nn.Module, planned: EmbeddingPlan, example: Example) -> tuple[nn.Module, Example]:
    """Copies of ``model`` and ``example`` on the meta device; planned convolutions are :class:`PlannedConv`.

    The copy runs on the example once, to find the memory format that it needs.
    """
    memo: dict[int, Any] = {}
    for layer in planned.layers:
        conv = model.get_submodule(layer.name)
        memo[id(conv)] = PlannedConv(conv, layer)
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(meta_copy(parameter), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = meta_copy(buffer)
    twin = copy_of(model, memo)
    exchange(twin, model, IN_LESS_MEMORY)
    example = example.changed(meta_copy)
    run_embedded(twin, PlannedConv, [(example, False)])
    return twin, example


def structure_bytes(planned: EmbeddingPlan) -> int:
    """About what patterns and ties take beside the values: arrays per block, and maps and counts per kernel entry."""
    total = 0
    for layer in planned.layers:
        total += _BYTES_PER_BLOCK * layer.stored_blocks
        total += _BYTES_PER_KERNEL_ENTRY * math.prod(layer.geometry.kernel_shape) + 4 * math.prod(layer.block_shape)
    return total
