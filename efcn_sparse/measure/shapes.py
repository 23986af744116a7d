"""What is measured and what is hoped for, as data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

OPS = ("forward", "dx", "dw")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class OpsCase:
    """One operation on one random ``[size, size]`` pattern of square blocks; ``sparse_rivals``: time those too."""

    op: str
    dtype: str
    block: int
    batch: int
    size: int
    density: float
    rounds: int
    sparse_rivals: bool

    @property
    def group(self) -> str:
        return f"{self.op} {self.dtype} N={self.batch} {self.size}x{self.size} at {self.density:.0%}"

    def __str__(self) -> str:
        return f"{self.op}-{self.dtype}-N{self.batch}-b{self.block}"


@dataclass(frozen=True)
class OpsShapes:
    """A grid of ``OpsCase``; torch.sparse and SciPy take part at ``sparse_batches`` only, for they are slow."""

    size: int
    density: float
    blocks: tuple[int, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    sparse_batches: tuple[int, ...]
    rounds: int

    def cases(self) -> Iterator[OpsCase]:
        for dtype, batch, op, block in itertools.product(self.dtypes, self.batches, OPS, self.blocks):
            sparse = batch in self.sparse_batches
            yield OpsCase(op, dtype, block, batch, self.size, self.density, self.rounds, sparse)


@dataclass(frozen=True)
class VanillaShapes:
    """A training step of VanillaCNN on ``[batch, 3, 32, 32]``."""

    batch: int
    rounds: int
    memory_steps: int


@dataclass(frozen=True)
class RooflineShapes:
    """A ``[gemm_size]³`` product, and arrays of ``array_mb`` megabytes (2²⁰ bytes), larger than the caches."""

    gemm_size: int
    array_mb: int
    rounds: int


@dataclass(frozen=True)
class Shapes:
    name: str
    ops: OpsShapes
    vanilla: VanillaShapes
    roofline: RooflineShapes


BOTH = ("float32", "bfloat16")
FULL = Shapes(
    "full",
    OpsShapes(4096, 0.10, (16, 32, 64, 128), (256, 1024), BOTH, sparse_batches=(256,), rounds=11),
    VanillaShapes(batch=250, rounds=11, memory_steps=3),
    RooflineShapes(gemm_size=2048, array_mb=256, rounds=7),
)
QUICK = Shapes(
    "quick",
    OpsShapes(2048, 0.10, (16, 64), (256,), BOTH, sparse_batches=(256,), rounds=5),
    VanillaShapes(batch=50, rounds=5, memory_steps=1),
    RooflineShapes(gemm_size=1024, array_mb=128, rounds=5),
)
TINY = Shapes(  # to see that everything runs, in seconds; its numbers say nothing
    "tiny",
    OpsShapes(256, 0.25, (16, 64), (8,), BOTH, sparse_batches=(8,), rounds=2),
    VanillaShapes(batch=2, rounds=2, memory_steps=1),
    RooflineShapes(gemm_size=128, array_mb=1, rounds=2),
)
SHAPES = {shapes.name: shapes for shapes in (FULL, QUICK, TINY)}


@dataclass(frozen=True)
class OpsGoal:
    """Least ratio of our rate (stored entries) to that of dense ``F.linear`` (all entries), for each operation."""

    dtype: str
    blocks: tuple[int, ...]
    needs_amx: bool
    forward: float
    dx: float
    dw: float


OPS_GOALS = (
    OpsGoal("float32", (64, 128), False, 0.90, 0.90, 0.85),
    OpsGoal("float32", (32,), False, 0.80, 0.80, 0.80),
    OpsGoal("float32", (16,), False, 0.60, 0.60, 0.60),
    OpsGoal("bfloat16", (64, 128), True, 0.60, 0.60, 0.50),
)
LARGE_BATCH_ALLOWANCE = 0.85  # batch 1024 may lie 15% below the goal of batch 256
VANILLA_GOALS = {"cnn": 1.0, "efcn_dense": 8.0, "lcn_unfold": 8.0}  # least (rival's step / ours)
DEVIATION_GOAL = 0.05  # most (reading / step)
EMBED_GOAL = 1.0  # seconds, most


def ops_goal(case: OpsCase, has_amx: bool) -> float | None:
    """The goal that applies to ``case`` on this machine, None if none does."""
    if (case.size, case.density) != (FULL.ops.size, FULL.ops.density):
        return None
    for goal in OPS_GOALS:
        if goal.dtype == case.dtype and case.block in goal.blocks and (has_amx or not goal.needs_amx):
            least: float = getattr(goal, case.op)
            return least if case.batch <= 256 else round(least * LARGE_BATCH_ALLOWANCE, 4)
    return None
