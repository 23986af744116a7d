"""The kernels without products compile for GPUs that are not here, which interpreting them does not show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).parents[2]
KERNELS = {"sum_pieces", "sum_stretches", "read_copies", "project", "add_slots", "join_places", "join_places, writing"}


def test_kernels_without_products_compile() -> None:
    # a process of its own: in this one the kernels may be interpreted
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.compile_ahead", "--arch", "sm90", "--kernels", "plain", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout, done.stderr[-3000:]
    kernels = json.loads(done.stdout)["kernels"]
    assert {kernel["operation"] for kernel in kernels} == KERNELS
    assert {kernel["dtype"] for kernel in kernels} == {"bf16", "fp32", "fp64"}
    assert not [kernel for kernel in kernels if kernel["faults"]]
