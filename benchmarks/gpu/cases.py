"""What is measured on a GPU, in order of importance, and what is hoped for: data, without torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

OPERATIONS = ("forward", "dx", "dw")
GROUPS = ("suite", "products", "rivals", "nets", "tuning")
GOALS = {128: 0.85, 64: 0.70, 32: 0.45, 16: 0.25}  # least fraction of the rate of the dense product of that shape
BREAK_EVEN_GOAL = 0.60  # at blocks of 128, most densities below this must be faster than dense
STEP_GOAL = 1.5  # most: eFCN step / CNN step
SIZES = ((4096, 4096), (16384, 4096))
DENSITIES = (0.05, 0.10, 0.25, 0.50)
BATCHES = (8192, 1024, 256, 4096)


@dataclass(frozen=True)
class Product:
    """A random pattern ``[out_features, in_features]`` of square blocks, with one batch."""

    block: int
    out_features: int
    in_features: int
    density: float
    batch: int

    def __str__(self) -> str:
        return f"{self.out_features}×{self.in_features}, blocks {self.block}, {self.density:.0%}, N={self.batch}"


@dataclass(frozen=True)
class Net:
    """A network, the side of its images, and the batch."""

    model: str
    pixels: int
    batch: int

    def __str__(self) -> str:
        return f"{self.model} at {self.pixels} pixels, N={self.batch}"


SMALL_NETS = (Net("vanilla", 32, 256), Net("alexnet", 32, 256))
LARGE_NET = Net("resnet18", 224, 256)
PREDICTED_NETS = (*SMALL_NETS, LARGE_NET)


@dataclass(frozen=True)
class Spec:
    """One case: which function measures it (``kind``), on what, and about how many seconds that may take."""

    name: str
    group: str
    kind: str
    seconds: float
    argument: Any = None


def grid(sizes: Sequence[tuple[int, int]] = SIZES, batches: Sequence[int] = BATCHES) -> Iterator[Product]:
    """The random patterns: large batches and square matrices first, one pattern's block after the other."""
    for batch, (out, inside), block, density in itertools.product(batches, sizes, GOALS, DENSITIES):
        yield Product(block, out, inside, density, batch)


def specs(groups: Sequence[str], dry: bool) -> list[Spec]:
    """Every case of these groups but the test suite, the most important first; what describes the device always."""
    chosen = _dry() if dry else _real()
    device = [Spec(kind, "device", kind, 0.0) for kind in ("environment", "ceilings", "clocks")]
    return [*device[:2], *(spec for spec in chosen if spec.group in groups), device[2]]


def _real() -> list[Spec]:
    first, *rest = (list(grid(batches=[batch])) for batch in BATCHES)
    square = [case for case in first if case.out_features == 4096]
    densest = [
        Product(128, 4096, 4096, density, 8192) for density in (0.60, 0.75, 1.0)
    ]  # the last: what the kernel is worth
    small, large = SMALL_NETS, LARGE_NET
    return [
        *_products([*square, *densest]),
        *(Spec(f"step: {net}", "nets", "step", 15, net) for net in small),
        Spec(f"step: {large}", "nets", "step", 60, large),
        *(Spec(f"rivals: {case}", "rivals", "rivals", 5, case) for case in _rivals(8192)),
        *_alternatives(square),
        *(Spec(f"layers: {net}", "nets", "layers", 10, net) for net in (*small, large)),
        Spec(f"alternatives: {large}", "tuning", "alternatives", 60, large),
        Spec(f"reading: {large}", "nets", "reading", 25, large),
        *_products([case for case in first if case.out_features != 4096]),
        Spec("huge: resnet50 at 224 pixels, N=64", "nets", "huge", 60, Net("resnet50", 224, 64)),
        *_alternatives([case for batch in rest for case in batch if case.batch == 256 and case.out_features == 4096]),
        *_products([case for batch in rest for case in batch]),
        *(Spec(f"rivals: {case}", "rivals", "rivals", 5, case) for case in _rivals(1024)),
    ]


def _products(cases: Sequence[Product]) -> list[Spec]:
    return [Spec(f"product: {case}", "products", "product", 3, case) for case in cases]


def _alternatives(cases: Sequence[Product]) -> list[Spec]:
    """Those of a density together: blocks of 128 at 10% say the most."""
    ordered = sorted(cases, key=lambda case: (0.10, 0.25, 0.05, 0.50).index(case.density))
    return [Spec(f"alternatives: {case}", "tuning", "alternatives", 4, case) for case in ordered]


def _rivals(batch: int) -> list[Product]:
    return [Product(block, 4096, 4096, density, batch) for density in (0.10, 0.50) for block in GOALS]


def _dry() -> list[Spec]:
    net = Net("vanilla", 32, 2)
    return [
        *_products([Product(block, 64, 32, density, 16) for block, density in ((16, 0.25), (32, 0.5))]),
        Spec(f"step: {net}", "nets", "step", 1, net),
        Spec("rivals: tiny", "rivals", "rivals", 1, Product(16, 64, 32, 0.5, 16)),
        Spec(f"layers: {net}", "nets", "layers", 1, net),
        Spec(f"reading: {net}", "nets", "reading", 1, net),
        Spec("huge: vanilla", "nets", "huge", 1, net),
        *_alternatives([Product(16, 64, 32, 0.25, 16)]),
    ]
