"""A whole training step of a local eFCN beside its CNN's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import efcn_sparse as es
from benchmarks.gpu import training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import STEP_GOAL, Net
from benchmarks.gpu.nets import CLASSES, images_of, make_cnn

CNN = "CNN"


def measure(bench: Bench, net: Net) -> dict[str, Any]:
    """The CNN (cuDNN, channels last, bf16 autocast), then eFCNs: seconds, ratio to the CNN, peak memory of each."""
    before = bench.held()
    images = images_of(net, bench.device)
    labels = torch.randint(CLASSES, (net.batch,), device=bench.device)
    cnn = make_cnn(net).to(bench.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    record: dict[str, Any] = vars(net) | {"goal": STEP_GOAL}
    record[CNN] = training.measure(
        bench, copy.deepcopy(cnn), lambda m: training.sgd(m.parameters()), images, labels, before=before
    )
    efcn: nn.Module | None = None
    for name, (dtype, make) in _VARIANTS.items():
        if efcn is None:
            efcn = es.embed(cnn, images_of(net, bench.device, batch=2))
            del cnn
        efcn = efcn.to(dtype)
        try:
            found = training.measure(bench, efcn, make, images.to(dtype), labels, before=before)
            both = "graph" if all("seconds" in one["graph"] for one in (found, record[CNN])) else "eager"
            found["times_cnn"] = found[both]["seconds"] / record[CNN][both]["seconds"]
            found["compared"] = both
            found["goal_met"] = found["times_cnn"] <= STEP_GOAL
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        record[name] = found
        _release(efcn)
    return record


def _plain(model: nn.Module) -> torch.optim.Optimizer:
    return training.sgd(model.parameters())


def _fused(model: nn.Module) -> torch.optim.Optimizer:
    return es.FusedOptimizer(model, training.sgd)


def _inside(model: nn.Module) -> torch.optim.Optimizer:
    return es.FusedOptimizer(model, training.sgd, inside=True)


def _release(model: nn.Module) -> None:
    """Free gradients, and give layers of a fused optimizer back to ordinary training."""
    for module in model.modules():
        if isinstance(module, es.SparseLinear):
            module.product = None
    model.zero_grad(set_to_none=True)


_VARIANTS: dict[str, tuple[torch.dtype, Callable[[nn.Module], torch.optim.Optimizer]]] = {
    "eFCN, fp32 weights": (torch.float32, _plain),
    "eFCN, fp32 weights, fused": (torch.float32, _fused),
    "eFCN, fp32 weights, SGD inside dW": (torch.float32, _inside),
    "eFCN, bf16 weights, fused": (torch.bfloat16, _fused),
    "eFCN, bf16 weights, SGD inside dW": (torch.bfloat16, _inside),
}
