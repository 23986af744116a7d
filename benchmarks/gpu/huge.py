"""A network whose eFCN may not fit: planned first, and stepped only if the plan says that it fits."""

from __future__ import annotations

from typing import Any

import torch

import efcn_sparse as es
from benchmarks.gpu import training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import Net
from benchmarks.gpu.nets import CLASSES, images_of, make_cnn
from efcn_sparse.planning import predict_step

_MARGIN = 1.25  # the plan counts what CPU kernels hold


def measure(bench: Bench, net: Net) -> dict[str, Any]:
    """The predicted peak of a fused step with bf16 weights, and if it fits the measured one, with the step's time."""
    with torch.device("meta"):
        batch = torch.empty(net.batch, 3, net.pixels, net.pixels, dtype=torch.bfloat16)
        predicted = predict_step(make_cnn(net).bfloat16(), batch, optimizer="sgd", fused=True)
    before = bench.held()
    free = bench.free_bytes()
    record: dict[str, Any] = vars(net) | {
        "predicted_peak_bytes": predicted.peak, "predicted_weight_bytes": predicted.weights, "free_bytes": free,
    }  # fmt: skip
    if _MARGIN * predicted.peak > free:
        return record | {"stepped": f"no: {_MARGIN} × {predicted.peak:,} bytes do not fit into {free:,}"}
    cnn = make_cnn(net).to(bench.device, torch.bfloat16)
    efcn = es.embed(cnn, images_of(net, bench.device, batch=2).bfloat16())
    del cnn
    labels = torch.randint(CLASSES, (net.batch,), device=bench.device)

    def fused(model: torch.nn.Module) -> torch.optim.Optimizer:
        return es.FusedOptimizer(model, training.sgd)

    images = images_of(net, bench.device).bfloat16()
    found = training.measure(bench, efcn, fused, images, labels, before=before, graph=False)
    return record | {"stepped": "yes", "step": found}
