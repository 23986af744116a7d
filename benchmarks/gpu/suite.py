"""The test suite on the GPU, in parts, each in processes of its own with a time limit. No torch here."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.protocol import NO_TIME

ROOT = Path(__file__).parents[2]
_LAWS = tuple(f"tests/ops/test_{name}.py" for name in ("accuracy", "adjoint", "accumulation"))
_ONLY_GPU, _AHEAD = "tests/triton/test_cuda.py", "tests/triton/test_compile_ahead.py"  # the latter asks for no GPU
_NOT_THIS_BACKEND = "not reference- and not cpu-"
_MOST_LOGGED = 3 << 20  # characters of a part
_MOST_WORKERS = 12  # compiling takes longer than running
_MARKED = re.compile(r"^(\[gw\d+\].* |\S+::.* )(FAILED|ERROR)\b")
_PASSED = re.compile(r"^(\[gw\d+\].* |\S+::.* )PASSED\b")
CACHE = Path(tempfile.gettempdir()) / "efcn-sparse-triton"  # what one process compiled the next one finds


@dataclass(frozen=True)
class Part:
    """Tests that make one record, and the share of the time left that they may take."""

    name: str
    tests: tuple[str, ...]
    share: float


# the most telling first, since the first ones also compile
PARTS = (
    Part("suite: only on a GPU", (_ONLY_GPU, "tests/host_cuda/test_device.py"), 0.4),
    Part("suite: laws of the products", _LAWS, 0.6),
    Part("suite: subspace", ("tests/subspace",), 0.6),
    Part(
        "suite: the rest", ("tests/triton", "tests/ops", *(f"--ignore={t}" for t in (_ONLY_GPU, _AHEAD, *_LAWS))), 1.0
    ),
)
_DRY_TESTS = ("tests/triton/test_work.py",)


def command(part: Part, dry: bool) -> list[str]:
    """The rows of the Triton backend, in several processes if pytest-xdist is there."""
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.at_once",
              "--tb=short", "-rfE"]  # fmt: skip
    if dry:
        return [*pytest, *_DRY_TESTS]
    many = (
        ["-n", str(max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) - 2)))]
        if importlib.util.find_spec("xdist") is not None
        else []
    )
    return [*pytest, *many, "-k", _NOT_THIS_BACKEND, *part.tests]


def run_all(dry: bool, seconds: float, add: Callable[[dict[str, Any]], None], log: Path | None = None) -> None:
    """Every part, one after the other; ``add`` gets its record as soon as it is there, ``log`` all that it printed."""
    deadline = time.monotonic() + seconds
    for part in PARTS:
        add(run(part, dry, part.share * (deadline - time.monotonic()), log=log))


def run(
    part: Part, dry: bool, seconds: float, arguments: list[str] | None = None, log: Path | None = None
) -> dict[str, Any]:
    """The record of a part; a failed test is listed, and stops nothing.

    Args:
        seconds: it is ended after so long, and what it printed until then is kept.
        arguments: the command, that of ``command(part, dry)`` by default.
        log: a file; what the tests print is added to it.
    """
    record: dict[str, Any] = {"name": part.name, "group": "suite"}
    if seconds <= 0:
        return record | {"not_run": NO_TIME}
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment.setdefault("TRITON_CACHE_DIR", str(CACHE))
    if not dry:
        environment["EFCN_TEST_DEVICE"] = "cuda"
    began = time.monotonic()
    try:
        status, text = _ended(arguments or command(part, dry), environment, seconds)
    except OSError as error:
        return record | {"failed": f"{type(error).__name__}: {error}"}
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{part.name}\n{text[-_MOST_LOGGED:]}\n")
    lines = text.strip().splitlines()
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
    if status is None:  # there is no list of failures at the end: they are marked as they came
        failed = [line[:300] for line in lines if _MARKED.search(line)]
        passed = sum(bool(_PASSED.search(line)) for line in lines)
        summary = f"not finished after {seconds:.0f} seconds, {passed} passed, {len(failed)} failed until then"
    else:
        summary = lines[-1] if lines else "no output"
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
        text, status = end(process), None
    return status, text.decode(errors="replace")


def end(process: subprocess.Popen[Any]) -> Any:
    """End a process that leads a session, and all that it started; what it printed."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]
