"""The work of a training step: the products of its sparse layers, and everything else by operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from efcn_sparse.planning.probe import Probe

Operation = Literal["forward", "dx", "dw"]


@dataclass(frozen=True)
class Product:
    """One of the three products of a sparse layer.

    Attributes:
        layer: its name in the model.
        operation: ``forward`` and ``dx`` are SpMM, ``dw`` is SDDMM.
        probe: what its rate is measured on.
        flops, moved: a multiplication and an addition being two; bytes read and written.
    """

    layer: str
    operation: Operation
    probe: Probe
    flops: int
    moved: int


@dataclass
class OperatorWork:
    """All calls of one of torch's operators in a step."""

    calls: int = 0
    flops: int = 0
    moved: int = 0


@dataclass
class StepWork:
    """What a step does.

    Attributes:
        products: of sparse layers, in the order in which they run.
        operators: all others, by name; fused updates among them.
        fresh: bytes that the allocator takes from the system in each step, and has given back before the next.
    """

    products: list[Product] = field(default_factory=list)
    operators: dict[str, OperatorWork] = field(default_factory=dict)
    fresh: int = 0

    @property
    def flops(self) -> int:
        """Of matrix products and convolutions."""
        return sum(product.flops for product in self.products) + sum(work.flops for work in self.operators.values())

    @property
    def moved(self) -> int:
        """Bytes that operations read and write, each operand once per operation."""
        return sum(product.moved for product in self.products) + sum(work.moved for work in self.operators.values())
