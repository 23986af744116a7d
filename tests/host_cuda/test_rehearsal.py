"""What runs on a GPU is rehearsed on a CUDA device in the host's memory, in processes that have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_cuda.build import ROOT, why_not
from tests.table import GPU

pytestmark = pytest.mark.skipif(GPU, reason="is such a process, or has a GPU")


def _run(*command: str, **environment: str) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no CUDA device in host memory: {reason}")
    given = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.host_cuda", sys.executable, "-m", *command],
        cwd=ROOT, env={**given, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


def test_the_tests_of_a_gpu() -> None:
    """A choice of them: ``make rehearse`` runs all."""
    pytest.importorskip("triton", reason="triton is not installed")
    tests = "tests/host_cuda/test_device.py", "tests/triton/test_cuda.py"
    _run("pytest", "-q", "-p", "no:cacheprovider", "-k", "not dtype1 and not adamw", *tests)


def test_a_run_of_relax(tmp_path: Path) -> None:
    """On a GPU that Triton does not run on, so that nothing is interpreted."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    sizes = {"seeds": 1, "epochs": 1, "relax-epochs": 1, "relax-times": 0, "train-limit": 64, "test-limit": 32}
    given = [f"--{name}={number}" for name, number in sizes.items()]
    _run(
        *("efcn_sparse.cli.main", "relax", "--preset=digits", "--device=cuda", "--fused", "--no-report", *given),
        *("--run-dir", str(tmp_path / "run"), "--arms", "cnn", "elcn", "efcn-grown2"),
        EFCN_HOST_CUDA_CAPABILITY="7.5",
    )
    assert "H100 in host memory" in (tmp_path / "run" / "environment.json").read_text()
