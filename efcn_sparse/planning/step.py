"""A training step of a planned model, run on the meta device and watched."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding.plan import Plan
from efcn_sparse.planning.fused_cost import FusedCost, OptimizerKind, fused_cost
from efcn_sparse.planning.live_memory import LiveMemory, meta_copy, tensors_in
from efcn_sparse.planning.twin import PlannedLinear, meta_twin, structure_bytes
from efcn_sparse.planning.work import StepWork


@dataclass(frozen=True)
class StepPrediction:
    """What a training step holds and does, in bytes, FLOPs and bytes moved.

    The parts need not be held at one time, so ``peak`` is at most their sum.

    Attributes:
        inputs: the batch.
        weights: parameters and buffers.
        structure: about what patterns and ties take.
        optimizer: the state.
        gradients: of all parameters after the backward pass; fused updates leave those of values out.
        activations: what the forward pass leaves for the backward pass.
        workspace: the slice of gradient that fused updates share; what kernels pack for themselves is in ``peak``.
        peak: the most that is held at one time, all of the above included.
        flops: of matrix products and convolutions, a multiplication and an addition being two.
        moved: bytes that operations read and write, each operand once per operation.
        work: the same, product by product and operator by operator: what an expected time is made of.
    """

    inputs: int
    weights: int
    structure: int
    optimizer: int
    gradients: int
    activations: int
    workspace: int
    peak: int
    flops: int
    moved: int
    work: StepWork = field(repr=False, compare=False)


def watch_step(
    model: nn.Module, example: tuple[Tensor, ...], planned: Plan, kind: OptimizerKind, fused: bool
) -> StepPrediction:
    """What the second step of the planned model holds and does; the first makes the optimizer's state."""
    fused = fused or kind.inside
    inputs = tuple(meta_copy(x) for x in example)
    twin = meta_twin(model, planned, inputs).train()
    layers = [module for module in twin.modules() if isinstance(module, PlannedLinear)]
    trained = [layer.layer for layer in layers if layer.values.requires_grad]
    fusion = fused_cost(trained, kind) if fused else FusedCost()
    memory = LiveMemory()
    for layer in layers:
        layer.memory, layer.fusion = memory, fusion if fused else None
    apart = {id(layer.values) for layer in layers if fused}
    stepped = [p for p in twin.parameters() if p.requires_grad and id(p) not in apart]
    optimizer = kind.make(stepped) if stepped else None
    structure = structure_bytes(planned)
    kept = [torch.empty(n, dtype=torch.uint8, device="meta") for n in (structure, fusion.workspace, fusion.state)]
    for tensor in (*inputs, *twin.parameters(), *twin.buffers(), *kept):
        memory.follow(tensor)
    input_bytes = sum(x.nbytes for x in inputs)
    weights = memory.held - input_bytes - sum(tensor.nbytes for tensor in kept)
    activations = gradients = 0
    for _ in range(2):
        twin.zero_grad(set_to_none=True)
        before = memory.held
        memory.restart()
        with memory:
            loss = _loss(twin(*inputs))
            activations = memory.held - before
            loss.backward()
            gradients = sum(p.grad.nbytes for p in twin.parameters() if p.grad is not None)
            if optimizer is not None:
                with torch.device("cpu"):  # where Adam counts its steps, even under torch.device("meta")
                    optimizer.step()
    state = optimizer.state.values() if optimizer is not None else ()
    return StepPrediction(
        inputs=input_bytes,
        weights=weights,
        structure=structure,
        optimizer=fusion.state + sum(t.nbytes for t in tensors_in(list(state)) if t.is_meta),
        gradients=gradients,
        activations=activations,
        workspace=fusion.workspace,
        peak=memory.peak,
        flops=memory.work.flops,
        moved=memory.work.moved,
        work=replace(memory.work, fresh=memory.fresh),
    )


def watch_reading(model: nn.Module, example: tuple[Tensor, ...], planned: Plan) -> int:
    """Bytes that the planned model takes to be evaluated without gradients, over what it holds; the inputs are in."""
    inputs = tuple(meta_copy(x) for x in example)
    twin = meta_twin(model, planned, inputs).eval()
    memory = LiveMemory()
    for tensor in (*twin.parameters(), *twin.buffers()):
        memory.follow(tensor)
    held = memory.held
    for tensor in inputs:
        memory.follow(tensor)
    with memory, torch.no_grad():
        twin(*inputs)
    return memory.peak - held


def _loss(output: Any) -> Tensor:
    losses = [t.square().mean() for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
    if not losses:
        raise ValueError("model must return floating-point tensors that need gradients, got an output without any")
    return torch.stack([loss.float() for loss in losses]).sum() if len(losses) > 1 else losses[0]
