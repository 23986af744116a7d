"""The time that the sparse layers of a plan take on this machine, each timed by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.benchmark import Timer

from efcn_sparse.available import available_bytes
from efcn_sparse.embedding.plan import EmbeddingPlan, LayerPlan
from efcn_sparse.linear import SparseLinear
from efcn_sparse.sizes import size_text

_SECONDS = 0.2  # of timed calls for each kind of layer


def time_layers(planned: EmbeddingPlan, batch: int) -> dict[str, float]:
    """Seconds of forward and backward of each layer's stored blocks on the CPU, with torch's present threads.

    One layer is held at a time; those that are alike are timed once. Low-rank parts, the optimizer and all other
    modules of the model are not in it.

    Raises:
        ValueError: a layer does not fit into the memory that is left.
    """
    times: dict[Any, float] = {}
    found = {}
    for layer in planned.layers:
        kind = (layer.geometry, layer.support, layer.block_shape, layer.dtype)
        if kind not in times:
            times[kind] = _seconds(layer, batch)
        found[layer.name] = times[kind]
    return found


def _seconds(layer: LayerPlan, batch: int) -> float:
    needed = 2 * (layer.block_bytes + batch * sum(layer.shape) * layer.dtype.itemsize)  # and as much for gradients
    left = available_bytes()
    if left is not None and needed > left:
        raise ValueError(
            f"--measure needs {size_text(needed)} for the layer {layer.name!r} at batch {batch}, got {size_text(left)} "
            "of memory left; take a smaller batch or support"
        )
    linear = SparseLinear(layer.shape[1], layer.shape[0], layer.pattern, bias=False, dtype=layer.dtype)
    x = torch.randn(batch, layer.shape[1]).to(layer.dtype).requires_grad_()
    dy = torch.randn(batch, layer.shape[0]).to(layer.dtype)
    timer = Timer(
        "linear.values.grad = x.grad = None; linear(x).backward(dy)",
        globals={"linear": linear, "x": x, "dy": dy},
        num_threads=torch.get_num_threads(),
    )
    return float(timer.blocked_autorange(min_run_time=_SECONDS).median)
