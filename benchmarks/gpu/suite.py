"""The test suite on the GPU, in a process of its own with a time limit. No torch here."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.protocol import NO_TIME

ROOT = Path(__file__).parents[2]
_TESTS = ("tests/ops", "tests/triton", "tests/subspace")
_DRY_TESTS = ("tests/triton/test_work.py",)
_NOT_THIS_BACKEND = "not reference- and not cpu-"
_MOST_WORKERS = 12  # compiling takes longer than running
_MARKED = re.compile(r"\b(FAILED|ERROR)\b")


def command(dry: bool) -> list[str]:
    """The rows of the Triton backend, in several processes if pytest-xdist is there."""
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=line", "-rfE"]
    if dry:
        return [*pytest, *_DRY_TESTS]
    many = (
        ["-n", str(max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) - 2)))]
        if importlib.util.find_spec("xdist") is not None
        else []
    )
    return [*pytest, *many, "-k", _NOT_THIS_BACKEND, *_TESTS]


def run(dry: bool, seconds: float, arguments: list[str] | None = None) -> dict[str, Any]:
    """The record of the case ``suite``; a failed test is listed, and stops nothing.

    Args:
        seconds: it is ended after so long, and what it printed until then is kept.
        arguments: the command, that of ``command(dry)`` by default.
    """
    record: dict[str, Any] = {"name": "suite", "group": "suite"}
    if seconds <= 0:
        return record | {"not_run": NO_TIME}
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not dry:
        environment["EFCN_TEST_DEVICE"] = "cuda"
    began = time.monotonic()
    try:
        status, text = _ended(arguments or command(dry), environment, seconds)
    except OSError as error:
        return record | {"failed": f"{type(error).__name__}: {error}"}
    lines = text.strip().splitlines()
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    if status is None:  # there is no list of failures at the end: they are marked as they came
        failed = [line[:300] for line in lines if _MARKED.search(line)]
    summary = f"not finished after {seconds:.0f} seconds" if status is None else (lines[-1] if lines else "no output")
    record |= {"seconds": round(time.monotonic() - began, 1)}
    found = {"status": status, "summary": re.sub(r"^=+ | =+$", "", summary), "failed_tests": failed[:100]}
    record["result"] = found | ({} if status == 0 else {"end": "\n".join(lines[-25:])[-4000:]})
    if status != 0:
        record["failed"] = found["summary"]
    return record


def _ended(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """Exit status and output; on time-out None, and all of its processes are ended, so that they disturb nobody."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        text, status = process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, status = process.communicate()[0], None
    return status, text.decode(errors="replace")
