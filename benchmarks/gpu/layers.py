"""Forward, dX and dW of each kind of layer of a local eFCN: seconds, and the fraction of its roofline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import OPERATIONS, Net
from benchmarks.gpu.nets import distinct_layers
from benchmarks.gpu.products import TOLERANCE
from benchmarks.gpu.sampled import sddmm_error, spmm_error
from efcn_sparse.embedding.plan import LayerPlan
from efcn_sparse.ops import sddmm, spmm


def measure(bench: Bench, net: Net) -> dict[str, Any]:
    """One record for each kind of layer; a layer that fails is recorded, and the next one follows."""
    records = []
    for layer, count in distinct_layers(net):
        record: dict[str, Any] = {"layer": layer.name, "count": count, "block": list(layer.block_shape)}
        try:
            record |= _layer(bench, layer, net.batch)
        except (AssertionError, RuntimeError) as error:
            record["failed"] = f"{type(error).__name__}: {error}"[:500]
        records.append(record)
    failed = [record for record in records if "failed" in record]
    if failed and len(failed) == len(records):
        raise RuntimeError(f"every layer failed, the first with {failed[0]['failed']}")
    return vars(net) | {"layers": records}


def _layer(bench: Bench, layer: LayerPlan, batch: int) -> dict[str, Any]:
    pattern = layer.pattern.to(bench.device)
    values = bench.randn(*pattern.values_shape)
    support = pattern.support_of_blocks()
    if support is not None:
        values.mul_(support)
    x, dy = bench.randn(batch, pattern.shape[1]), bench.randn(batch, pattern.shape[0])
    # the net's own dtype and device choose the backend of a layer; here it is named, so that nothing else can run
    backend = bench.backend if not bench.dry else "auto"
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: spmm(x, values, pattern, backend=backend),
        "dx": lambda: spmm(dy, values, pattern, transpose=True, backend=backend),
        "dw": lambda: sddmm(dy, x, pattern, backend=backend),
    }
    errors = {
        "forward": spmm_error(calls["forward"](), x, values, pattern, transpose=False),
        "dx": spmm_error(calls["dx"](), dy, values, pattern, transpose=True),
        "dw": sddmm_error(calls["dw"](), dy, x, pattern),
    }
    for operation, error in errors.items():
        if not error <= TOLERANCE:
            raise AssertionError(f"{layer.name}, {operation}: must be within {TOLERANCE} of fp32, got {error:.3g}")
    flops, moved = 2.0 * batch * pattern.nnz, 2.0 * (x.numel() + dy.numel() + values.numel())
    ceilings = bench.ceilings()
    found: dict[str, Any] = {
        "shape": list(pattern.shape), "nnz_blocks": pattern.nnz_blocks, "gflop": 1e-9 * flops,
        "megabytes": 1e-6 * moved, "bound_by": ceilings.bound(flops, moved), "relative_errors": errors,
    }  # fmt: skip
    for operation in OPERATIONS:
        timing = bench.clock.time(calls[operation])
        least = ceilings.least_seconds(flops, moved)
        found[operation] = timing.record() | {"fraction_of_roofline": least / timing.seconds}
    return found
