"""Machines without AVX-512 or AMX, and a torch without brgemm: the accuracy file again, with oneDNN, our own kernels,
or both held to an older instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efcn_sparse import extension_status
from tests.table import GPU

ROOT = Path(__file__).parents[2]
OLDEST = "ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2"


def _is_the_ordinary_run() -> bool:
    """Whether this processor has no more than OLDEST leaves it, and the files have run as it can."""
    chosen = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"} & os.environ.keys()
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and not chosen and not GPU


def _has_amx() -> bool:
    return "amx_bf16" in Path("/proc/cpuinfo").read_text()


@pytest.mark.skipif(not extension_status().available, reason=extension_status().reason or "the extension is there")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            OLDEST, marks=pytest.mark.skipif(_is_the_ordinary_run(), reason="both files have run so: no more than AVX2")
        ),
        "EFCN_BRGEMM=off",
        pytest.param("EFCN_AMX=off", marks=pytest.mark.skipif(not _has_amx(), reason="the ordinary run: no AMX")),
        pytest.param("EFCN_BRGEMM=off ATEN_CPU_CAPABILITY=avx2", marks=pytest.mark.slow),
        pytest.param("ONEDNN_MAX_CPU_ISA=AVX2", marks=pytest.mark.slow),
        pytest.param("ONEDNN_MAX_CPU_ISA=AVX512_CORE", marks=pytest.mark.slow),
    ],
)
def test_accuracy_on_older_instruction_sets(settings: str) -> None:
    chosen_set = dict(setting.split("=") for setting in settings.split())
    environment = {**os.environ, "EFCN_TEST_DEVICE": "cpu"} | chosen_set
    chosen = "(product or large) and (cpu-float32 or cpu-bfloat16)"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen]
    files = [str(ROOT / "tests" / "ops" / name) for name in ("test_accuracy.py", "test_cpu_panels.py")]
    done = subprocess.run(
        [*command, *files], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
