"""What the numbers are taken on, and what it can do at the most."""

from __future__ import annotations

import platform
from typing import Any

import torch
import triton

from benchmarks.gpu.cases.bench import Bench
from efcn_sparse.measure import machine


def measure(bench: Bench) -> dict[str, Any]:
    """Versions and commit; FLOP/s of a dense bf16 product, bytes/s of a copy, seconds of the smallest kernel."""
    side, length = (64, 1 << 12) if bench.dry else (8192, 1 << 30)
    a, b, source, one = bench.randn(side, side), bench.randn(side, side), bench.randn(length), bench.randn(1)
    target = torch.empty_like(source)
    product = bench.clock.time(lambda: a @ b).seconds
    copy = bench.clock.time(lambda: target.copy_(source)).seconds
    properties = None if bench.dry else torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": "dry run" if properties is None else properties.name,
        "processors": 0 if properties is None else properties.multi_processor_count,
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
            "cuda": torch.version.cuda, "cudnn": None if bench.dry else torch.backends.cudnn.version(),
        },
        "commit": machine.commit() or "unknown",
        "flops": 2 * side**3 / product, "bytes_per_second": 2 * source.nbytes / copy,
        "launch_seconds": bench.clock.time(lambda: one.add_(1)).seconds,
    }  # fmt: skip
