"""What this machine can do at most: its dense product, and its memory (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from efcn_sparse.measure.contest import Contest
from efcn_sparse.measure.shapes import DTYPES, RooflineShapes


@dataclass(frozen=True)
class Bound:
    """The most that an amount of work can reach: ``gflops``, and whether ``"compute"`` or ``"memory"`` sets it."""

    gflops: float
    limited_by: str


@dataclass(frozen=True)
class Roofline:
    """Measured ceilings: ``gemm[dtype][library]`` in GFLOP/s, memory in GB/s (10⁹ bytes).

    Example:
        >>> roof = Roofline({"float32": {"linear": 100.0, "onednn": 200.0}}, read=40.0, copy=50.0)
        >>> roof.bound("float32", flops=4e9, moved=2e9)
        Bound(gflops=100.0, limited_by='memory')
    """

    gemm: dict[str, dict[str, float]]
    read: float
    copy: float

    def compute(self, dtype: str) -> float:
        """The best dense product's rate, GFLOP/s."""
        return max(self.gemm[dtype].values())

    def bound(self, dtype: str, flops: float, moved: float) -> Bound:
        """The roof above ``flops`` operations that have to move ``moved`` bytes at least once."""
        by_memory = max(self.read, self.copy) * flops / moved
        compute = self.compute(dtype)
        return Bound(compute, "compute") if compute <= by_memory else Bound(by_memory, "memory")


def measure(shapes: RooflineShapes) -> Roofline:
    """The ceilings of this machine with torch's present number of threads: best of the rounds, as ceilings are."""
    n = shapes.gemm_size
    gemm = {}
    for name, dtype in DTYPES.items():
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        calls = dense_products(a, b)
        gemm[name] = {route: 2e-9 * n**3 / seconds for route, seconds in _best(calls, shapes.rounds).items()}
    source = torch.ones(shapes.array_mb * 2**18)
    target = torch.zeros_like(source)
    size = 1e-9 * source.numel() * source.element_size()
    best = _best(
        {"sum": source.sum, "dot": lambda: source.dot(source), "copy": lambda: target.copy_(source)}, shapes.rounds
    )
    return Roofline(gemm, read=size / min(best["sum"], best["dot"]), copy=2 * size / best["copy"])


def dense_products(a: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """a bᵀ by each library that torch was built with: its own choice (``linear``), and oneDNN where it is there."""
    calls: dict[str, Callable[[], Tensor]] = {"linear": lambda: F.linear(a, b)}
    if has_onednn(a.dtype):
        # torch sends fp32 to MKL, which is slow on processors that are not Intel's: oneDNN shows what they can do
        calls["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], None)
    return calls


@functools.cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch can hand a product of this dtype to oneDNN here."""
    a = torch.zeros(16, 16, dtype=dtype)
    try:
        torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], None)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def _best(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    contest = Contest(calls, ours=next(iter(calls)))
    contest.run(rounds)
    return {name: min(contest.times(name)) for name in calls}
