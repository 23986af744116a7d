"""What is measured on a GPU, the most important first: data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.gpu.cases import device, products, steps
from benchmarks.gpu.cases.bench import Bench
from benchmarks.gpu.cases.products import Shape

BLOCKS = (128, 64, 32, 16)
SIDE = 4096
BATCHES_AND_DENSITIES = ((8192, 0.10), (256, 0.10), (8192, 0.50), (8192, 0.05), (256, 0.50), (1024, 0.25))


class Measurement(NamedTuple):
    """A case: its name, its group, and what measures it."""

    name: str
    group: str
    call: Callable[[Bench], dict[str, Any]]


def measurements(groups: Sequence[str], dry: bool) -> list[Measurement]:
    """Every case of these groups, and what describes the device."""
    if dry:
        shapes = [Shape(16, 64, 0.25, 16)]
        nets = [("vanilla", 32, 2)]
    else:
        shapes = [Shape(block, SIDE, density, n) for n, density in BATCHES_AND_DENSITIES for block in BLOCKS]
        shapes.insert(len(BLOCKS), Shape(128, SIDE, 1.0, 8192))  # what the kernel is worth without sparsity
        nets = [("vanilla", 32, 256), ("resnet18", 224, 64)]
    of_products = [
        Measurement(f"product: {shape}", "products", partial(products.measure, shape=shape)) for shape in shapes
    ]
    of_steps = [
        Measurement(f"step: {name} at {pixels} pixels, N={n}", "steps", partial(steps.measure, net=(name, pixels, n)))
        for name, pixels, n in nets
    ]
    large, small = len(BLOCKS) + 1, 2 * len(BLOCKS) + 1  # products of the first and second batch
    ordered = [*of_products[:large], *of_steps[:1], *of_products[large:small], *of_steps[1:], *of_products[small:]]
    return [Measurement("device", "device", device.measure), *(one for one in ordered if one.group in groups)]
