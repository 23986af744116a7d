"""A copy of the project to build from, and a Python that sees nothing of this checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = (".*", "__pycache__", "*.so", "*.egg-info", "build", "dist", "runs")


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """The project's files in another folder, so that no build leaves anything in the checkout."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """``run(command, cwd=..., **environment)``: a finished process, with its output as text."""

    def run(command, cwd=None, **environment):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EFCN_", "MAKE", "MFLAGS", "PYTHONPATH", "CXX"))
        }
        cwd = cwd or tmp_path_factory.mktemp("empty")
        return subprocess.run(
            command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=300, check=False
        )

    return run


@pytest.fixture(scope="session")
def python(run):
    """``python(code, **environment)``: this checkout's package in an empty folder; the code's standard output."""

    def python(code, **environment):
        done = run([sys.executable, "-c", code], PYTHONPATH=str(ROOT), **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python
