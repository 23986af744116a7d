"""Kernels compile for GPUs that are not here, which interpreting does not show: `benchmarks/gpu/compile_ahead.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OTHERS = {
    "sum_pieces_kernel", "sum_stretches_kernel", "add_slots_kernel", "read_copies_kernel", "project_kernel",
    "join_places_kernel",
}  # fmt: skip


def _compiled(*arguments: str) -> list[dict[str, Any]]:
    # a process of its own: in this one the kernels may be interpreted
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.compile_ahead", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_kernels_compile_without_faults() -> None:
    kernels = _compiled("--arch", "sm90", "--every", "5")
    assert {"spmm_kernel", "sddmm_kernel"} < {kernel["kernel"] for kernel in kernels}
    assert not [kernel for kernel in kernels if kernel["faults"]]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm80", "sm90", "gfx942"])
def test_every_kernel_compiles_without_faults(arch: str) -> None:
    kernels = _compiled("--arch", arch)
    assert {kernel["kernel"] for kernel in kernels} == OTHERS | {"spmm_kernel", "sddmm_kernel"}
    assert {kernel["dtype"] for kernel in kernels} == {"bf16", "fp32", "fp64"}
    assert any(kernel["out"] == "fp32" for kernel in kernels)  # a step inside the product, in mixed precision
    assert not [kernel for kernel in kernels if kernel["faults"]]
