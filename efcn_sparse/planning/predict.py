"""What a training step of an eFCN will hold, before anything of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from efcn_sparse.embedding.example_run import checked_example
from efcn_sparse.embedding.plan import plan
from efcn_sparse.embedding.support import Local, Support
from efcn_sparse.planning.fused_cost import checked_optimizer
from efcn_sparse.planning.step import StepPrediction, watch_step


def predict_step(
    model: nn.Module,
    batch: Tensor | tuple[Tensor, ...],
    *,
    support: Support = Local(),
    layers: Mapping[str, Any] | None = None,
    optimizer: str = "sgd",
    fused: bool = False,
) -> StepPrediction:
    """The memory and the work of a training step of ``embed(model, batch, support=support, layers=layers)`` on the CPU.

    The model's twin runs forward, backward and through the optimizer on the meta device, and every allocation is
    followed from its birth to its death; what the kernels pack for themselves is counted from their rules. What the
    process holds beside the step is not in it: Python and torch, and memory that the allocator keeps. With glibc that
    can be as much as all tensors below 32 MiB together, unless ``MALLOC_MMAP_THRESHOLD_=131072`` is in the environment.

    Args:
        model, support, layers: as for :func:`embed`; the model may be on the meta device, and is not changed.
        batch: the positional inputs of one step, of the batch size in question, may be on the meta device.
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
    example = checked_example(batch)
    planned = plan(model, example, support=support, layers=layers)
    return watch_step(model, example, planned, kind, fused)
