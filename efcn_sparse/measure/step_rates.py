"""The rates of this machine from which the time of a training step is expected."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from efcn_sparse.embedding.build import build
from efcn_sparse.measure import roofline
from efcn_sparse.measure.shapes import RooflineShapes
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.planning.duration import Rates
from efcn_sparse.planning.live_memory import LiveMemory
from efcn_sparse.planning.probe import Probe
from efcn_sparse.planning.work import Operation

_SECONDS = 0.08  # for one operation
_LEAST_CALLS, _MOST_CALLS = 5, 200
_FRESH_ELEMENTS = 1 << 24  # 64 MiB: more than the allocator keeps
_DEPTH = 10
_ROOFLINE = RooflineShapes(gemm_size=1024, array_mb=256, rounds=5)


def measure_rates(probes: Iterable[Probe], known: Mapping[str, Mapping[Operation, float]] | None = None) -> Rates:
    """The rates of this machine with torch's present number of threads; a few seconds for a few dozen probes.

    Args:
        probes: to be measured.
        known: rates of other probes, which are taken over.
    """
    products = {**(known or {}), **{probe.key: _rates_of(probe) for probe in probes}}
    roof = roofline.measure(_ROOFLINE)
    return Rates(products, 1e9 * roof.compute("float32"), 1e9 * roof.copy, _first_touch(), _call())


@torch.no_grad()
def _rates_of(probe: Probe) -> dict[Operation, float]:
    pattern, _ = build(probe.geometry, probe.support, probe.block_shape)
    generator = torch.Generator().manual_seed(1906)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(probe.dtype)

    out_features, in_features = pattern.shape
    x, dy, values = noise(probe.batch, in_features), noise(probe.batch, out_features), noise(*pattern.values_shape)
    calls: dict[Operation, Callable[[], object]] = {
        "forward": lambda: spmm(x, values, pattern),
        "dx": lambda: spmm(dy, values, pattern, transpose=True),
        "dw": lambda: sddmm(dy, x, pattern),
    }
    flops = 2 * probe.batch * pattern.nnz
    return {operation: flops / _seconds(call) for operation, call in calls.items()}


def _first_touch() -> float:
    """Bytes a second of a large new array that is written once and freed."""
    empty = _seconds(lambda: torch.empty(_FRESH_ELEMENTS).fill_(1.0))
    kept = torch.empty(_FRESH_ELEMENTS)
    again = _seconds(lambda: kept.fill_(1.0))
    return 4 * _FRESH_ELEMENTS / max(empty - again, 0.05 * empty)


def _call() -> float:
    """Seconds an operator, from training steps of a deep net with hardly a number in it."""
    net = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.ReLU()) for _ in range(_DEPTH)))
    optimizer, x = torch.optim.SGD(net.parameters(), lr=0.0), torch.ones(1, 1)

    def step() -> None:
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()

    with LiveMemory() as counted:
        step()
    return _seconds(step) / sum(done.calls for done in counted.work.operators.values())


def _seconds(call: Callable[[], object]) -> float:
    """The lower quartile of a call's times: what it takes where nothing else runs, save for luck."""
    call()
    times: list[float] = []
    while len(times) < _LEAST_CALLS or (math.fsum(times) < _SECONDS and len(times) < _MOST_CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=4, method="inclusive")[0]
