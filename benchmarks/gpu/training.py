"""Training steps of one model: seconds, eagerly and as a CUDA graph, and the most memory held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench

LEARNING_RATE = 0.01
Make = Callable[[nn.Module], torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The paper's optimizer: no momentum, no weight decay."""
    return torch.optim.SGD(parameters, lr=LEARNING_RATE)


def measure(
    bench: Bench, model: nn.Module, make: Make, images: Tensor, labels: Tensor, *, before: int, graph: bool = True
) -> dict[str, Any]:
    """Steps of cross-entropy under bf16 autocast (bf16 models: without); memory is over ``before`` bytes.

    A model that is no longer finite has no speed: the losses of the first and last step are checked.

    Raises:
        AssertionError: the loss is not finite.
    """
    model.train()
    optimizer = make(model)
    autocast = next(model.parameters()).dtype == torch.float32
    losses: list[Tensor] = []

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # a cast that was cached outside a graph must not be used inside it
        with torch.autocast(bench.device, torch.bfloat16, enabled=autocast, cache_enabled=False):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses.append(step())
    held = bench.held() - before
    peak = bench.peak_of(lambda: losses.append(step())) - before
    eager = bench.clock.time_eagerly(step)
    losses.append(step())
    found = [float(loss) for loss in losses]
    if not all(loss == loss and abs(loss) < float("inf") for loss in found):
        raise AssertionError(f"losses must be finite, got {found}")
    record: dict[str, Any] = {
        "eager": eager.record(), "peak_bytes": peak, "held_bytes": held, "losses": found,
    }  # fmt: skip
    if graph:
        optimizer.zero_grad(set_to_none=True)
        try:
            record["graph"] = bench.clock.time(step).record()
        except RuntimeError as error:
            if not bench.dry:
                torch.cuda.synchronize()
            record["graph"] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return record
