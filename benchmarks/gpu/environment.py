"""Device, versions, commit and clocks of a run."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from efcn_sparse.measure import machine

_ASKED = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def describe(bench: Bench) -> dict[str, Any]:
    """What the numbers were taken on; the commit is git's, or ``EFCN_COMMIT`` where there is no git."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("EFCN_COMMIT") or machine.commit() or "unknown",
        "torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "triton": _triton(),
        "python": platform.python_version(), "backend": bench.backend, "dry": bench.dry, "clocks": clocks(),
    }  # fmt: skip
    if bench.dry:
        return found | {"device": "dry run on a CPU"}
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return found | {
        "device": device.name, "capability": f"{device.major}.{device.minor}",
        "processors": device.multi_processor_count, "memory_bytes": device.total_memory,
        "l2_bytes": device.L2_cache_size, "cudnn": torch.backends.cudnn.version(),
    }  # fmt: skip


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks, power and temperature; empty if it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_ASKED.split(","), done.stdout.splitlines()[0].split(", "), strict=False))


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return triton.__version__
