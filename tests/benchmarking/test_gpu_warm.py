"""What is compiled ahead for the measurements is what their launches ask Triton's cache for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu import warm
from benchmarks.gpu.cases import GROUPS, OPERATIONS, specs

ROOT = Path(__file__).parents[2]
DEVICE = ("sm90", "132", "232448")
# launches on tensors with memory, by the library's own operators; each reports whether the cache had its kernel
LAUNCHES = """
import json, sys
import torch
from triton import knobs
from benchmarks.gpu import warm
from benchmarks.gpu.cases import Product
from benchmarks.gpu.predict import make_pattern
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.ops.backends.triton import launch_sddmm, launch_spmm
from efcn_sparse.ops.backends import triton as backend
from efcn_sparse.ops.backends.triton.device import Device

hits = []
knobs.compilation.listener = lambda *, src, cache_hit, **_: hits.append([src.name, cache_hit])
device = Device("sm90", 132, 232448)
warm.compile_only(device.arch, None)
launch_spmm.device_of = launch_sddmm.device_of = lambda _: device
backend.why_not = lambda *_: None
case = Product(*json.loads(sys.argv[1]))
pattern = make_pattern(case)
values = torch.randn(pattern.values_shape).bfloat16()
x, dy = torch.randn(case.batch, case.in_features).bfloat16(), torch.randn(case.batch, case.out_features).bfloat16()
spmm(x, values, pattern, backend="triton")
spmm(dy, values, pattern, transpose=True, backend="triton")
sddmm(dy, x, pattern, backend="triton")
print(json.dumps(hits))
"""


def _run(*command: str, cache: Path) -> str:
    environment = dict(os.environ, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(cache), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    what = ["--dry-run", "--groups", "products", "--processes", "1", "--device", *DEVICE]
    told = _run("-m", "benchmarks.gpu.warm", *what, cache=tmp_path)
    assert int(told.split()[0]) >= 3
    (case, *_) = (spec.argument for spec in specs(["products"], dry=True) if spec.kind == "product")
    hits = json.loads(_run("-c", LAUNCHES, json.dumps(list(vars(case).values())), cache=tmp_path))
    assert {name for name, _ in hits} >= {"spmm_kernel", "sddmm_kernel"}
    assert len(hits) >= 3
    assert all(hit for _, hit in hits)
    (other,) = (hit for _, hit in json.loads(_run("-c", LAUNCHES, json.dumps([8, 16, 16, 1.0, 7]), cache=tmp_path))[:1])
    assert not other  # it can tell


def test_every_product_and_layer_is_compiled_for() -> None:
    jobs = warm.jobs(GROUPS)
    products = [spec.argument for spec in specs(GROUPS, dry=False) if spec.kind == "product"]
    assert {(case, part) for kind, case, part in jobs if kind == "product"} == {
        (case, operation) for case in products for operation in OPERATIONS
    }
    assert {case.model for kind, case, _ in jobs if kind == "step"} == {"vanilla", "alexnet", "resnet18"}
