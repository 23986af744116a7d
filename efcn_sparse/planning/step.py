"""A training step of a planned model, run on the meta device and watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.embedding.example_run import Example
from efcn_sparse.embedding.plan import EmbeddingPlan, plan
from efcn_sparse.embedding.support import Local, Support
from efcn_sparse.planning.fused_cost import FusedCost, OptimizerKind, checked_optimizer, fused_cost
from efcn_sparse.planning.live_memory import LiveMemory, tensors_in
from efcn_sparse.planning.twin import PlannedLinear, meta_twin, structure_bytes


@dataclass(frozen=True)
class StepPrediction:
    """What a training step holds in bytes, and does in FLOPs.

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


def predict_step(
    model: nn.Module,
    batch: Tensor | tuple[Tensor, ...] | None = None,
    *,
    support: Support = Local(),
    layers: Mapping[str, Any] | None = None,
    optimizer: str = "sgd",
    fused: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    leave_uncalled: bool = False,
) -> StepPrediction:
    """Memory and FLOPs of a training step of ``embed(model, batch, support=support, layers=layers)`` on the CPU.

    The model's twin runs forward, backward and through the optimizer on the meta device, and every allocation is
    followed from its birth to its death; what the kernels pack for themselves is counted from their rules. What the
    process holds beside the step is not in it: Python and torch, and memory that allocators keep. The layers' own keeps
    up to 256 MiB, in small nets about a fifth of the peak (:func:`efcn_sparse.empty_cache`), and glibc's as much as all
    tensors below 32 MiB together, unless ``EFCN_KEEP_MEMORY=off`` and ``MALLOC_MMAP_THRESHOLD_=131072`` are in the
    environment.

    Args:
        model, support, layers, leave_uncalled: as for :func:`embed`; the model may be on the meta device, and is not
            changed.
        batch, example_inputs, example_kwargs: the inputs of one step, of the batch size in question, as for
            :func:`embed`; tensors may be on the meta device.
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adamw"``; or ``"sgd-inside"``, which is
            ``FusedOptimizer(..., inside=True)`` whatever ``fused`` is.
        fused: whether :class:`FusedOptimizer` runs it inside the backward pass.

    Raises:
        ValueError: what :func:`embed` refuses before it builds anything; or the optimizer is unknown.

    Example:
        >>> import torch
        >>> from efcn_sparse.models import vanilla_cnn
        >>> with torch.device("meta"):
        ...     predicted = predict_step(vanilla_cnn(), torch.empty(250, 3, 32, 32), fused=True)
        >>> predicted.weights, predicted.gradients < predicted.weights // 10
        (22983720, True)
    """
    kind = checked_optimizer(optimizer)
    example = Example.of(batch, example_inputs, example_kwargs, name="batch")
    planned = plan(
        model, support=support, layers=layers, example_inputs=example.args, example_kwargs=example.kwargs,
        leave_uncalled=leave_uncalled,
    )  # fmt: skip
    return watch_step(model, example, planned, kind, fused)


def watch_step(
    model: nn.Module, example: Example, planned: EmbeddingPlan, kind: OptimizerKind, fused: bool
) -> StepPrediction:
    """What the second step of the planned model holds and does; the first makes the optimizer's state."""
    fused = fused or kind.inside
    twin, example = meta_twin(model, planned, example)
    twin.train()
    inputs = tensors_in((example.args, example.kwargs))
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
            loss = _loss(example.call(twin))
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
        flops=memory.flops,
    )


def watch_reading(model: nn.Module, example: Example, planned: EmbeddingPlan) -> int:
    """Bytes that the planned model takes to be evaluated without gradients, over what it holds; the inputs are in."""
    twin, example = meta_twin(model, planned, example)
    twin.eval()
    memory = LiveMemory()
    for tensor in (*twin.parameters(), *twin.buffers()):
        memory.follow(tensor)
    held = memory.held
    for tensor in tensors_in((example.args, example.kwargs)):
        memory.follow(tensor)
    with memory, torch.no_grad():
        example.call(twin)
    return memory.peak - held


def _loss(output: Any) -> Tensor:
    losses = [t.square().mean() for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
    if not losses:
        raise ValueError("model must return floating-point tensors that need gradients, got an output without any")
    return torch.stack([loss.float() for loss in losses]).sum() if len(losses) > 1 else losses[0]
