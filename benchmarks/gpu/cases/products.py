"""Forward, dX and dW of a random pattern beside cuBLAS's dense product, compared before they are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases.bench import Bench
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.pattern import BlockPattern

OPERATIONS = ("forward", "dx", "dw")
TOLERANCE = 1e-2  # relative Frobenius distance in bf16


@dataclass(frozen=True)
class Shape:
    """A random square pattern of square blocks, with one batch."""

    block: int
    side: int
    density: float
    batch: int

    def __str__(self) -> str:
        return f"{self.side}×{self.side}, blocks {self.block}, {self.density:.0%}, N={self.batch}"


def measure(bench: Bench, shape: Shape) -> dict[str, Any]:
    """Seconds of each operation and of the dense product, which take turns; and the ratio of their rates.

    The dense rate is that of a full random matrix, because zeros draw less power. An operation whose result is not that
    of the dense product in fp32, or differs from call to call, has no speed: it is recorded as failed.

    Raises:
        RuntimeError: an operation fails and the device is lost.
    """
    generator = torch.Generator().manual_seed(1906)
    sides, block = (shape.side, shape.side), (shape.block, shape.block)
    pattern = BlockPattern.random(sides, block, shape.density, generator).to(bench.device)
    values, full = bench.randn(*pattern.values_shape), bench.randn(shape.side, shape.side)
    x, dy = bench.randn(shape.batch, shape.side), bench.randn(shape.batch, shape.side)
    dense = pattern.to_dense(values).float()
    ours: dict[str, Callable[..., Tensor]] = {
        "forward": lambda **out: spmm(x, values, pattern, backend="triton", **out),
        "dx": lambda **out: spmm(dy, values, pattern, transpose=True, backend="triton", **out),
        "dw": lambda **out: sddmm(dy, x, pattern, backend="triton", **out),
    }
    theirs: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: x @ full.T,
        "dx": lambda: dy @ full,
        "dw": lambda: dy.T @ x,
    }
    exact: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: x.float() @ dense.T,
        "dx": lambda: dy.float() @ dense,
        "dw": lambda: pattern.gather(dy.float().T @ x.float()),
    }
    record: dict[str, Any] = asdict(shape) | {"stored_density": pattern.density}
    for operation in OPERATIONS:
        try:
            error = checked(ours[operation], exact[operation]())
            mine, other = bench.clock.time_together(ours[operation], theirs[operation])
        except Exception as failure:
            if bench.is_broken():
                raise
            record["failed"] = f"{operation}: {type(failure).__name__}: {failure}"[:500]
            continue
        record[operation] = {
            "time": asdict(mine), "dense": asdict(other), "relative_error": error,
            "tflops": 2e-12 * shape.batch * values.numel() / mine.seconds,
            "times_faster_than_dense": other.seconds / mine.seconds,
            "fraction_of_dense_rate": pattern.density * other.seconds / mine.seconds,
        }  # fmt: skip
    return record


def checked(call: Callable[..., Tensor], expected: Tensor) -> float:
    """The relative error of the result, written over memory that is full of NaN.

    Raises:
        AssertionError: it is above ``TOLERANCE``, or a second call gives other bits.
    """
    found = call(out=torch.full_like(expected, float("nan"), dtype=torch.bfloat16))
    error = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not error <= TOLERANCE:
        raise AssertionError(f"must be within {TOLERANCE} of the dense product in fp32, got {error:.3g}")
    if not torch.equal(found, call()):
        raise AssertionError("a second call must give the same bits")
    return error
