"""One rival of :mod:`efcn_sparse.measure.locally_connected`, run by its path: Flax's Python may have no torch.

Writes a line of JSON when it is ready, and an empty one after each line that it reads.
"""

import json
import math
import os
import sys
from importlib import metadata
from typing import Any

import numpy as np


def arrays(given):
    """The same numbers for all: x ``[N, C, H, W]``, dy ``[N, O, *grid]``, weight ``[*grid, O, C, k, k]``.

    Images lie channels last where that suits the rival.
    """
    draw = np.random.default_rng(1906)
    grid = (given["size"] + 2 * given["padding"] - given["kernel"]) // given["stride"] + 1
    kernel = (given["kernel"], given["kernel"])

    def normal(*shape):
        return draw.standard_normal(shape, dtype=np.float32)

    x = normal(given["batch"], given["inputs"], given["size"], given["size"])
    dy = normal(given["batch"], given["outputs"], grid, grid)
    weight = normal(grid, grid, given["outputs"], given["inputs"], *kernel) / math.sqrt(
        given["inputs"] * kernel[0] ** 2
    )
    if given["rival"] != "unfold + bmm":
        x, dy = (np.moveaxis(np.ascontiguousarray(np.moveaxis(part, 1, -1)), -1, 1) for part in (x, dy))
    return x, dy, weight


def torch_call(given, x, dy, weight):
    """Ours, or unfold and a batched product."""
    import torch

    import efcn_sparse as es
    from efcn_sparse.measure.vanilla import UnfoldLocallyConnected

    x, dy, weight = (torch.from_numpy(part) for part in (x, dy, weight))
    layer: Any
    sizes = given["inputs"], given["outputs"]
    window: Any = dict(kernel_size=given["kernel"], stride=given["stride"], padding=given["padding"])
    if given["rival"] == "efcn_sparse":
        layer = es.LocallyConnected2d(*sizes, input_size=(given["size"],) * 2, **window)
        layer.load_weight(weight)
        parameter = layer.linear.values
        torch.nn.init.zeros_(layer.linear.bias)
    else:
        layer = UnfoldLocallyConnected(torch.nn.Conv2d(*sizes, **window), tuple(dy.shape[2:]))
        parameter = layer.weight
        with torch.no_grad():
            parameter.copy_(weight.flatten(3).flatten(0, 1).transpose(1, 2))
            layer.bias.zero_()
    x.requires_grad_()

    def call():
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(dy)
        return y.detach(), x.grad, parameter.grad

    return call


def flax_call(given, x, dy, weight):
    """Flax's layer, its gradients by ``jax.vjp``, compiled."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["threads"]])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from flax import linen

    layer = linen.ConvLocal(
        given["outputs"], (given["kernel"],) * 2, given["stride"], padding=[(given["padding"],) * 2] * 2
    )
    kernel = np.moveaxis(weight.reshape(*weight.shape[:3], -1), 2, 3)  # its patches run over channels, then the window
    parameters = {"kernel": kernel, "bias": np.zeros((*weight.shape[:2], given["outputs"]), np.float32)}
    x, dy, parameters = jax.device_put((np.moveaxis(x, 1, -1), np.moveaxis(dy, 1, -1), parameters))

    @jax.jit
    def both(parameters, x, dy):
        y, backward = jax.vjp(lambda p, x: layer.apply({"params": p}, x), parameters, x)
        gradients, dx = backward(dy)
        return y, dx, gradients

    def call():
        y, dx, gradients = jax.block_until_ready(both(parameters, x, dy))
        return np.moveaxis(np.asarray(y), -1, 1), np.moveaxis(np.asarray(dx), -1, 1), np.asarray(gradients["kernel"])

    return call


def digest(y, dx, dw):
    """A product with random numbers, and the norm; of dw, whose order differs, the norm alone."""
    draw = np.random.default_rng(7)
    found = {}
    for name, part in (("y", y), ("dx", dx), ("dw", dw)):
        array = np.ascontiguousarray(part, dtype=np.float64).ravel()
        along = 0.0 if name == "dw" else float(array @ draw.standard_normal(array.size))
        found[name] = (along, float(np.linalg.norm(array)))
    return found


def main():
    """Make the layer, say that it is ready, and run once for each line."""
    given = json.loads(sys.argv[1])
    call: Any
    peak, versions = None, {}
    if given["rival"] == "Flax ConvLocal":
        call = flax_call(given, *arrays(given))
        versions = {name: metadata.version(name) for name in ("flax", "jax")}
    else:
        import torch

        from efcn_sparse.measure.memory import peak_bytes, settle

        torch.set_num_threads(given["threads"])
        small = {**given, "batch": 1, "size": 2}
        torch_call(small, *arrays(small))()  # libraries load and thread pools start with the first call
        x, dy, weight = arrays(given)
        before = settle()
        call = torch_call(given, x, dy, weight)
        settle()
        for _ in range(2):
            call()
        peak = peak_bytes() - before
    print(json.dumps({"peak": peak, "versions": versions, "digest": digest(*call())}), flush=True)
    for _ in sys.stdin:
        call()
        print(flush=True)


if __name__ == "__main__":
    main()
