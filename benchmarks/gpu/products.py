"""Forward, dX and dW of one random pattern beside the dense product of that shape, compared before they are timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, relative_error
from benchmarks.gpu.cases import GOALS, OPERATIONS, Product
from benchmarks.gpu.predict import make_pattern, predict
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.ops.backends.triton.device import device_of
from efcn_sparse.ops.backends.triton.machines import machine_of
from efcn_sparse.pattern import BlockPattern

TOLERANCE = 1e-2  # relative Frobenius distance in bf16


@functools.lru_cache(maxsize=1)
def operands(bench: Bench, block: int, out: int, inside: int, density: float) -> tuple[BlockPattern, Tensor, Tensor]:
    """The pattern, its values, and the dense matrix."""
    pattern = make_pattern(Product(block, out, inside, density, 0), bench.device)
    values = bench.randn(*pattern.values_shape)
    return pattern, values, pattern.to_dense(values)


def measure(bench: Bench, case: Product) -> dict[str, Any]:
    """Seconds, and our rate over stored entries as a fraction of the dense product's rate, the two taking turns.

    The dense rate is that of a full random matrix. What is faster or slower than dense is held against the matrix with
    its zeros, which is what somebody would multiply instead.

    An operation whose result is not that of the dense product in fp32, or differs from call to call, has no speed: it
    is recorded as failed.

    Raises:
        RuntimeError: all three fail, or the device is lost.
    """
    pattern, values, dense = operands(bench, case.block, case.out_features, case.in_features, case.density)
    full = bench.randn(case.out_features, case.in_features)
    x, dy = bench.randn(case.batch, case.in_features), bench.randn(case.batch, case.out_features)
    backend = bench.backend
    ours: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: spmm(x, values, pattern, backend=backend),
        "dx": lambda: spmm(dy, values, pattern, transpose=True, backend=backend),
        "dw": lambda: sddmm(dy, x, pattern, backend=backend),
    }
    theirs: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: x @ full.T,
        "dx": lambda: dy @ full,
        "dw": lambda: dy.T @ x,
    }
    with_zeros: dict[str, Callable[[], Tensor]] = {  # which a GPU multiplies faster: they draw less power
        "forward": lambda: x @ dense.T,
        "dx": lambda: dy @ dense,
        "dw": theirs["dw"],
    }
    exact: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: x.float() @ dense.float().T,
        "dx": lambda: dy.float() @ dense.float(),
        "dw": lambda: pattern.gather(dy.float().T @ x.float()),
    }
    record: dict[str, Any] = vars(case) | {"stored_density": pattern.density}
    for operation in OPERATIONS:
        try:
            error = checked(f"{case}, {operation}", ours[operation], exact[operation]())
            mine, other, zeros = bench.clock.time_together(ours[operation], theirs[operation], with_zeros[operation])
        except Exception as failure:
            if bench.is_broken():
                raise
            record[operation] = {"failed": f"{type(failure).__name__}: {failure}"[:500]}
            continue
        fraction = pattern.density * other.seconds / mine.seconds
        flops = 2.0 * case.batch * values.numel()
        moved = 2.0 * (case.batch * (case.in_features + case.out_features) + values.numel())
        record[operation] = {
            "time": mine.record(), "dense": other.record(), "dense_with_zeros": zeros.record(),
            "tflops": 1e-12 * flops / mine.seconds,
            "fraction_of_dense_rate": fraction, "goal": GOALS[case.block], "goal_met": fraction >= GOALS[case.block],
            "times_faster_than_dense": zeros.seconds / mine.seconds, "relative_error": error,
            "fraction_of_roofline": bench.ceilings().least_seconds(flops, moved) / mine.seconds,
            "predicted_fraction": predict(case, pattern, operation, machine_of(device_of(x))).fraction,
        }  # fmt: skip
    if all("failed" in record[operation] for operation in OPERATIONS):
        raise RuntimeError(f"forward, dX and dW all fail, the first with {record['forward']['failed']}")
    return record


def checked(what: str, call: Callable[[], Tensor], expected: Tensor) -> float:
    """The relative error of ``call()``, whose result takes the place of memory that was full of NaN.

    Raises:
        AssertionError: it is above ``TOLERANCE``, or a second call gives other bits.
    """
    poison = torch.full_like(expected, float("nan"), dtype=torch.bfloat16)
    del poison  # the allocator hands this memory to the result
    found = call()
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise AssertionError(f"{what}: must be within {TOLERANCE} of the dense product in fp32, got {error:.3g}")
    if not torch.equal(found, call()):
        raise AssertionError(f"{what}: a second call must give the same bits")
    return error
