"""A training step of a CNN and of its local eFCN: seconds, eagerly and as a CUDA graph, and peak memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import efcn_sparse as es
from benchmarks.gpu.cases.bench import Bench
from efcn_sparse.models import MODELS

CLASSES = 10
CNN = "CNN"
Make = Callable[[nn.Module], torch.optim.Optimizer]


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


VARIANTS: dict[str, tuple[torch.dtype, Make]] = {
    "eFCN, fp32 weights": (torch.float32, lambda model: _sgd(model.parameters())),
    "eFCN, fp32 weights, SGD inside dW": (torch.float32, lambda model: es.FusedOptimizer(model, _sgd, inside=True)),
    "eFCN, bf16 weights, SGD inside dW": (torch.bfloat16, lambda model: es.FusedOptimizer(model, _sgd, inside=True)),
}


def measure(bench: Bench, net: tuple[str, int, int]) -> dict[str, Any]:
    """The CNN (cuDNN, channels last, bf16 autocast), then its eFCNs; ``net``: model, pixels, batch."""
    name, pixels, batch = net
    torch.manual_seed(1906)
    cnn = MODELS[name](CLASSES).to(bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    channels = next(cnn.parameters()).shape[1]
    images = torch.randn(batch, channels, pixels, pixels, device=bench.device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(CLASSES, (batch,), device=bench.device)
    record: dict[str, Any] = {"net": name, "pixels": pixels, "batch": batch}
    record[CNN] = _steps(bench, copy.deepcopy(cnn), lambda model: _sgd(model.parameters()), images, labels)
    for variant, (dtype, make) in VARIANTS.items():
        try:
            efcn = es.embed(cnn, images[:2]).to(dtype)
            found = _steps(bench, efcn, make, images.to(dtype), labels)
            both = "graph" if "graph" in found and "graph" in record[CNN] else "eager"
            found["times_cnn"] = found[both]["seconds"] / record[CNN][both]["seconds"]
            record[variant] = found
        except (AssertionError, RuntimeError, ValueError) as error:
            record["failed"] = f"{variant}: {type(error).__name__}: {error}"[:500]
    return record


def _steps(bench: Bench, model: nn.Module, make: Make, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Steps of cross-entropy, fp32 models under bf16 autocast.

    Raises:
        AssertionError: a loss is not finite: such a model has no speed.
    """
    model.train()
    optimizer, autocast = make(model), next(model.parameters()).dtype == torch.float32
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
    peak = bench.peak_of(lambda: losses.append(step()))
    record: dict[str, Any] = {"eager": asdict(bench.clock.time_eagerly(step)), "peak_bytes": peak}
    losses.append(step())
    record["losses"] = [float(loss) for loss in losses]
    if not bool(torch.stack(losses).isfinite().all()):
        raise AssertionError(f"losses must be finite, got {record['losses']}")
    optimizer.zero_grad(set_to_none=True)
    try:
        record["graph"] = asdict(bench.clock.time(step))
    except RuntimeError as error:
        record["no_graph"] = f"{type(error).__name__}: {error}"[:500]
    return record
