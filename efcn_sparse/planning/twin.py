"""A model's embedded twin on the meta device, without patterns: what a step holds depends on their sizes alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.embedding.example_run import run_embedded
from efcn_sparse.embedding.plan import LayerPlan, Plan
from efcn_sparse.planning.fused_cost import FusedCost
from efcn_sparse.planning.kernel_rules import sddmm_copy, spmm_copy
from efcn_sparse.planning.live_memory import LiveMemory, meta_copy
from efcn_sparse.planning.probe import Probe
from efcn_sparse.planning.work import Operation, OperatorWork, Product

_BYTES_PER_BLOCK = 7 * 4  # two walks, masks and classes, int32
_BYTES_PER_KERNEL_ENTRY = 4 + 8  # its place in the maps where blocks divide the channels, and how many copies it has


class PlannedLinear(nn.Module):
    """In the place of a :class:`SparseLinear`: allocates what it would, and computes nothing.

    Attributes:
        memory: notes the work, while a step is simulated.
        fusion: what updates inside the backward pass cost; None: the values get a gradient.
    """

    def __init__(self, layer: LayerPlan, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.memory: LiveMemory | None = None
        self.fusion: FusedCost | None = None
        self._probe: tuple[int, Probe] | None = None
        shape = (layer.stored_blocks, *layer.block_shape)
        values = torch.empty(shape, dtype=layer.dtype, device="meta")
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(values.new_empty(layer.shape[0]), requires_grad=bias.requires_grad)

    def probe(self, batch: int) -> Probe:
        """What the rates of this layer's products are measured on."""
        if self._probe is None or self._probe[0] != batch:
            self._probe = batch, Probe.of(self.layer, batch)
        return self._probe[1]

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.values, self.bias, self)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, linear: PlannedLinear) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.linear, ctx.own = linear, values is linear.values
        layer = linear.layer
        height, width = layer.block_shape
        copied = x.new_empty(spmm_copy(x, width, height), dtype=torch.uint8)
        y = x.new_empty((x.shape[0], layer.shape[0]))
        del copied
        _note(linear, "forward", x.shape[0], linear.values.nbytes)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, _), linear = ctx.saved_tensors, ctx.linear
        layer, batch = linear.layer, x.shape[0]
        height, width = layer.block_shape
        dx = dvalues = dbias = None
        if ctx.needs_input_grad[0]:
            copied = dy.new_empty(spmm_copy(dy, height, width), dtype=torch.uint8)
            dx = torch.empty((batch, layer.shape[1]), dtype=dy.dtype, device="meta")
            del copied
            _note(linear, "dx", batch, linear.values.nbytes)
        if ctx.needs_input_grad[1]:
            copied = x.new_empty(sddmm_copy(x, width, height), dtype=torch.uint8)
            if linear.fusion is not None and ctx.own:
                update = x.new_empty(linear.fusion.update, dtype=torch.uint8)
                _note(linear, "dw", batch, 0)  # the gradient stays in the cache
                _note_update(linear, 2 * (1 + linear.fusion.state_numbers) * linear.values.nbytes)
                del update
            else:
                dvalues = torch.empty(linear.values.shape, dtype=layer.dtype, device="meta")
                _note(linear, "dw", batch, linear.values.nbytes)
            del copied
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0)
        return dx, dvalues, dbias, None


def _note(linear: PlannedLinear, operation: Operation, batch: int, weight_bytes: int) -> None:
    """One of the layer's three products: each weight and each unit of the activations on both sides once."""
    if linear.memory is not None:
        layer = linear.layer
        moved = weight_bytes + batch * sum(layer.shape) * layer.dtype.itemsize
        flops = 2 * batch * (layer.support_weights - layer.rank * sum(layer.shape))
        linear.memory.work.products.append(Product(layer.name, operation, linear.probe(batch), flops, moved))


class PlannedLowRank(nn.Module):
    """In the place of a :class:`LowRankPart`: the narrow products as they are, those with stored blocks as planned."""

    def __init__(self, layer: LayerPlan, requires_grad: bool) -> None:
        super().__init__()
        sides = [torch.empty((side, layer.rank), dtype=layer.dtype, device="meta") for side in layer.shape]
        self.left, self.right = (nn.Parameter(side, requires_grad=requires_grad) for side in sides)

    def forward(self, x: Tensor, linear: PlannedLinear) -> Tensor:
        stored = _Sampled.apply(self.left, self.right, linear)
        return (x @ self.right) @ self.left.T - _Product.apply(x, stored, None, linear)


class _Sampled(torch.autograd.Function):
    """``U Vᵀ`` at the stored blocks: a copy of the size of ``values``."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, linear: PlannedLinear) -> Tensor:
        ctx.save_for_backward(left, right)
        ctx.linear = linear
        stored = torch.empty(linear.values.shape, dtype=linear.layer.dtype, device="meta")
        _note(linear, "dw", left.shape[1], linear.values.nbytes)
        return stored

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        left, right = ctx.saved_tensors
        _note(ctx.linear, "forward", left.shape[1], gradient.nbytes)
        _note(ctx.linear, "dx", left.shape[1], gradient.nbytes)
        return torch.empty_like(left), torch.empty_like(right), None


def _note_update(linear: PlannedLinear, moved: int) -> None:
    if linear.memory is not None:
        done = linear.memory.work.operators.setdefault("fused update", OperatorWork())
        done.calls += 1
        done.moved += moved


class PlannedConv(nn.Module):
    """In the place of an :class:`EmbeddedConv`."""

    def __init__(self, conv: nn.Module, layer: LayerPlan) -> None:
        super().__init__()
        assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        self.geometry = layer.geometry
        layer.geometry.describe(self)
        self.contiguous_output = False
        self.linear = PlannedLinear(layer, conv.weight, conv.bias)
        self.low_rank = PlannedLowRank(layer, conv.weight.requires_grad) if layer.rank else None

    forward = EmbeddedConv.forward
    weight = EmbeddedConv.weight


def meta_twin(model: nn.Module, planned: Plan, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of ``model`` on the meta device whose planned convolutions are :class:`PlannedConv`.

    Args:
        inputs: on the meta device; the copy runs on them once, to find the memory format that it needs.
    """
    memo: dict[int, Any] = {}
    for layer in planned.layers:
        conv = model.get_submodule(layer.name)
        memo[id(conv)] = PlannedConv(conv, layer)
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(meta_copy(parameter), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = meta_copy(buffer)
    twin = copy.deepcopy(model, memo)
    run_embedded(twin, PlannedConv, inputs)
    return twin


def structure_bytes(planned: Plan) -> int:
    """About what patterns and ties take beside the values: arrays per block, and maps and counts per kernel entry."""
    total = 0
    for layer in planned.layers:
        geometry = layer.geometry
        kernel = geometry.out_channels * geometry.in_channels // geometry.groups * math.prod(geometry.kernel_size)
        total += _BYTES_PER_BLOCK * layer.stored_blocks
        total += _BYTES_PER_KERNEL_ENTRY * kernel + 4 * math.prod(layer.block_shape)
    return total
