"""Kernels compile for GPUs that are not here, with tensor instructions, no spills, within limits, loading ahead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_16_bit_products_are_added_to_fp32_values() -> None:
    kernels = _compiled("sm90", "--fp32-out", "--limit", "4")
    assert {(kernel["operation"], kernel["dtype"]) for kernel in kernels} == {("sddmm", "bf16 → fp32")}
    for kernel in kernels:
        assert kernel["faults"] == []
        assert kernel["instruction"] == "wgmma.mma_async"
        assert kernel["doubles"] <= 4, kernel  # alpha and beta are rounded, no sum is in fp64


def _compiled(arch: str, *arguments: str) -> list[dict[str, Any]]:
    # a process of its own: in this one the kernels may be interpreted
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.compile_ahead", "--arch", arch, "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["kernels"]


@pytest.mark.parametrize("arch", ["sm80", "sm90", "sm100", "gfx942"])
def test_configurations_compile(arch: str) -> None:
    kernels = _compiled(arch, "--limit", "8")
    assert {kernel["operation"] for kernel in kernels} == {"spmm", "spmm_t", "sddmm"}
    for kernel in kernels:
        assert kernel["faults"] == []
        if kernel["dtype"] == "bf16":
            assert kernel["instructions"] > 0, kernel
        if arch.startswith("sm") and kernel["dtype"] == "bf16":  # as many tiles in flight as there are stages
            m, n, k = (int(side) for side in kernel["tile"].split("×"))
            assert kernel["shared"] >= (kernel["stages"] - 1) * (m + n) * k * 2, kernel
