"""What a run was made with: versions and hardware."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch

from efcn_sparse.extension import extension_status


def environment(device: str) -> dict[str, object]:
    """Versions of the library and of what it stands on, and the machine, as JSON types."""
    import efcn_sparse

    on = torch.device(device)
    return {
        "efcn_sparse": efcn_sparse.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(on) if on.type == "cuda" else str(on),
        "extension": "available" if extension_status().available else extension_status().reason,
    }


def cpu_name() -> str:
    """The CPU as the operating system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
