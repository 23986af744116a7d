"""What the device can do at all: dense bf16 products, copies through memory, reads from L2, a launch."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu.bench import Bench


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s of an 8192³ product in bf16; bytes/s read and written by a copy; bytes/s read from L2; seconds.

    ``l2`` is None where Triton is not installed. ``launch`` is the time of a kernel that does next to nothing.
    """

    flops: float
    memory: float
    l2: float | None
    launch: float

    def least_seconds(self, flops: float, moved: float) -> float:
        """No faster than this."""
        return max(flops / self.flops, moved / self.memory)

    def bound(self, flops: float, moved: float) -> str:
        """What sets that time: ``"MMA"`` or ``"memory"``."""
        return "MMA" if flops / self.flops >= moved / self.memory else "memory"

    def record(self) -> dict[str, Any]:
        return asdict(self)


def measure(bench: Bench) -> Ceilings:
    """All of them, on random data."""
    side, length = (64, 1 << 12) if bench.dry else (8192, 1 << 30)
    a, b = bench.randn(side, side), bench.randn(side, side)
    product = bench.clock.time(lambda: a @ b).seconds
    source = bench.randn(length)
    target = torch.empty_like(source)
    copy = bench.clock.time(lambda: target.copy_(source)).seconds
    one = torch.ones(1, device=bench.device)
    launch = bench.clock.time(lambda: one.add_(1)).seconds
    return Ceilings(2 * side**3 / product, 2 * source.nbytes / copy, _l2(bench), launch)


def _l2(bench: Bench) -> float | None:
    if importlib.util.find_spec("triton") is None or bench.backend != "triton":
        return None
    from benchmarks.gpu.l2_kernel import read_kernel

    programs, steps, block, size = (2, 2, 64, 256) if bench.dry else (1056, 256, 4096, 1 << 22)  # 16 MiB
    data = torch.randn(size, device=bench.device)
    out = torch.empty(programs * block, device=bench.device)
    seconds = bench.clock.time(lambda: read_kernel[(programs,)](data, out, size, STEPS=steps, BLOCK=block)).seconds
    return 4.0 * programs * steps * block / seconds
