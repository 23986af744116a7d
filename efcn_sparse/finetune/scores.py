"""How large the gradient of each block of a dense weight is, over some batches, without holding the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.gradients.factors import Factors
from efcn_sparse.growth.scores import scores_outside
from efcn_sparse.linear.refusals import weight_of
from efcn_sparse.pattern import BlockPattern


def gradient_scores(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, tuple[int, int]]],
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
) -> dict[str, Tensor]:
    """fp64 ``[block rows, block columns]`` for each layer: the sum over batches of ‖gradient of the block‖².

    The model runs in its present mode. No parameter's ``grad`` changes, and buffers are as before afterwards.

    Args:
        layers: the layers by name, and the block shape for each.
        loss: ``loss(model, batch)``, a scalar.

    Raises:
        ValueError: there are no batches, or a layer is not used.
    """
    empty = {
        name: BlockPattern.from_blocks(
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), weight_of(layer).shape, shape
        ).to(weight_of(layer).device)
        for name, (layer, shape) in layers.items()
    }
    scores = {
        name: torch.zeros(pattern.grid[0] * pattern.grid[1], dtype=torch.float64, device=pattern.device)
        for name, pattern in empty.items()
    }
    used = dict.fromkeys(layers, 0)
    factors: dict[str, list[Factors]] = {name: [] for name in layers}
    roots: list[Tensor] = []

    def watch(name: str) -> Callable[..., Tensor]:
        def after_forward(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], y: Tensor) -> Tensor:
            x = (args or tuple(kwargs.values()))[0].detach()
            root = y if y.requires_grad else y.detach().requires_grad_()  # all before it may be frozen
            roots.append(root)
            root.register_hook(lambda dy: factors[name].append(_factors(dy, x)))
            return root.clone()  # a function in place would make it another tensor, whose gradient is not this one

        return after_forward

    kept = [
        (module._buffers, name, buffer, _copied(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    handles = [layer.register_forward_hook(watch(name), with_kwargs=True) for name, (layer, _) in layers.items()]
    number = 0
    try:
        for batch in batches:
            number += 1
            with torch.enable_grad():
                value = loss(model, batch)
                if roots:
                    torch.autograd.grad(value, list(roots), allow_unused=True)
            roots.clear()
            for name, found in factors.items():
                used[name] += len(found)
                if found:
                    joined = Factors.joined(found)
                    for part in scores_outside(joined.dy, joined.x, empty[name]):
                        scores[name][part.blocks] += part.squares
                found.clear()
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for held, name, buffer, before in kept:
                held[name] = buffer
                if buffer is not None and before is not None and not torch.equal(buffer, before):
                    buffer.copy_(before)
    if not number:
        raise ValueError("batches must hold at least one batch, got none")
    unused = [name for name, count in used.items() if not count]
    if unused:
        raise ValueError(f"batches must use every layer that gets a delta, got no gradient in {', '.join(unused)}")
    return {name: score.view(empty[name].grid) for name, score in scores.items()}


def _copied(buffer: Tensor | None) -> Tensor | None:
    """What a pass may change; versions do not tell, since batch norm writes its statistics without counting."""
    return None if buffer is None or buffer.is_inference() or buffer.layout is not torch.strided else buffer.clone()


def _factors(dy: Tensor, x: Tensor) -> Factors:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return Factors(*(part.detach().reshape(-1, part.shape[-1]).to(dtype) for part in (dy, x)))
