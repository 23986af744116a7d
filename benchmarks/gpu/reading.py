"""The subspace reading (tied, untied, off-local) against the bytes that it must read."""

from __future__ import annotations

from typing import Any

import torch

import efcn_sparse as es
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import Net
from benchmarks.gpu.nets import images_of, make_cnn
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.subspace.backends import resolve
from efcn_sparse.subspace.plan import weight_blocks

_TOLERANCE = 1e-5


def measure(bench: Bench, net: Net) -> dict[str, Any]:
    """Seconds of the reading of all layers, and of the largest one; the fraction is of the copy's bandwidth.

    Raises:
        AssertionError: the parts do not add up to the norm of the values in fp64.
    """
    cnn = make_cnn(net).to(bench.device)
    efcn = es.embed(cnn, images_of(net, bench.device, batch=2))
    with torch.no_grad():
        for layer in efcn.modules():
            if isinstance(layer, EmbeddedConv):
                layer.linear.values.mul_(1 + 0.1 * torch.randn_like(layer.linear.values))
    layers = [module for module in efcn.modules() if isinstance(module, EmbeddedConv)]
    moved = sum(layer.linear.values.nbytes for layer in layers)
    found = es.deviation(efcn)
    exact = sum(float(layer.linear.values.detach().double().square().sum()) for layer in layers) ** 0.5
    if not abs(found.norm - exact) <= _TOLERANCE * exact:
        raise AssertionError(f"the parts must add up to {exact}, got {found.norm}")
    whole = bench.clock.time_eagerly(lambda: es.deviation(efcn))
    largest = max(layers, key=lambda layer: layer.linear.values.numel())
    values, plan = weight_blocks(largest)
    run = resolve("auto", values.device, values.dtype)
    one = bench.clock.time_either_way(lambda: run.squares(values.contiguous(), plan))
    rate = bench.ceilings().memory
    fraction = values.nbytes / rate / one.seconds
    return vars(net) | {
        "backend": run.NAME, "bytes": moved, "all_layers": whole.record(),
        "fraction_of_memory": moved / rate / whole.seconds,
        "largest_layer": one.record() | {"bytes": values.nbytes, "fraction_of_memory": fraction},
    }  # fmt: skip
