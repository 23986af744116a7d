"""Everything that needs a GPU, in at most seven minutes: the tests on it, products against cuBLAS, training steps.

    python -m benchmarks.gpu.run [--minutes 7] [--only suite products steps] [--results DIR] [--dry-run]

Needs torch, Triton and pytest. Prints a page and writes ``<device>-<date>.json`` and ``.md`` and what the tests printed
(``suite.log``) to benchmarks/results. A case that takes the device with it costs a process and not the run; what does
not fit the time is listed as not run. ``--dry-run`` goes through all of it on a CPU with tiny shapes under Triton's
interpreter; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.page import page

ROOT = Path(__file__).parents[2]
GROUPS = ("suite", "products", "steps")
NO_TIME = "no time left"
_LONGEST_SUITE, _SHARE_OF_SUITE = 180.0, 0.45
_GRACE = 20.0  # seconds that a case may take past the end
_TESTS = ("tests/triton/test_cuda.py", "tests/ops", "tests/triton", "tests/subspace")
_DRY_TESTS = ("tests/triton/test_schedule.py",)

Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run it all; 1 if a test or a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.0, help="time for everything together (default: 7)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all of them")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60.0 * options.minutes
    options.results.mkdir(parents=True, exist_ok=True)
    found: Record = {"date": datetime.date.today().isoformat()}
    if "suite" in options.only:
        seconds = min(_LONGEST_SUITE, _SHARE_OF_SUITE * 60.0 * options.minutes)
        found["suite"] = run_suite(
            suite_command(options.dry_run), seconds, options.results / "suite.log", options.dry_run
        )
        print(f"suite: {found['suite']['summary']}", flush=True)
    records = options.results / f".gpu-{os.getpid()}.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu.worker", str(records), *options.only]
    try:
        measured = measure([*command, *(["--dry-run"] if options.dry_run else [])], records, deadline)
    finally:
        records.unlink(missing_ok=True)
    found |= {"device": measured.pop("device", {}), "cases": list(measured.values())}
    name = re.sub(r"[^a-z0-9]+", "-", str(found["device"].get("device", "no device")).lower()).strip("-")
    for ending, text in (("json", json.dumps(found, indent=1) + "\n"), ("md", page(found))):
        path = options.results / f"{name}-{found['date']}.{ending}"
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    print(page(found))
    failed = [case for case in found["cases"] if "failed" in case]
    return 1 if failed or not found["device"] or found.get("suite", {}).get("status", 0) != 0 else 0


# -- the tests -------------------------------------------------------------------------------------------------------


def suite_command(dry: bool) -> list[str]:
    """The tests of the Triton backend, in several processes if pytest-xdist is there."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=short", "-rfE"]
    if dry:
        return [*command, *_DRY_TESTS]
    many = min(12, max(1, (os.cpu_count() or 2) - 2))  # compiling takes longer than running
    parallel = ["-n", str(many)] if importlib.util.find_spec("xdist") else []
    ahead = "--ignore=tests/triton/test_compile_ahead.py"  # asks for no GPU
    return [*command, *parallel, "-k", "not reference- and not cpu-", ahead, *_TESTS]


def run_suite(command: list[str], seconds: float, log: Path, dry: bool) -> Record:
    """Exit status (None: out of time), a summary, and the tests that failed; all that they print goes to ``log``."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if not dry:
        environment["EFCN_TEST_DEVICE"] = "cuda"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        status = _ended(process, seconds)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
    failed = [line[:300] for line in lines if re.search(r"\b(FAILED|ERROR)\b", line) and "::" in line]
    summary = re.sub(r"^=+ | =+$", "", lines[-1])
    if status is None:
        passed = sum(" PASSED" in line for line in lines)
        summary = f"not finished after {seconds:.0f} seconds; {passed} passed, {len(failed)} failed until then"
    return {"status": status, "summary": summary, "failed_tests": list(dict.fromkeys(failed))[:100]}


# -- the cases -------------------------------------------------------------------------------------------------------


def measure(command: list[str], records: Path, deadline: float) -> dict[str, Record]:
    """Records by name. Workers are started until every case has one: a case that ends its worker is recorded as failed.

    Args:
        command: a worker: it appends to ``records`` a line ``{"cases": [names]}``, then for each case that has no line
            yet ``{"begun": name}`` and its record.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1" if "--dry-run" in command else "0"}
    while True:
        before = records.stat().st_size if records.exists() else 0
        left = deadline - time.monotonic()
        process = subprocess.Popen(
            [*command, f"--seconds={max(0.0, left):.0f}"], cwd=ROOT, env=environment, start_new_session=True
        )
        status = _ended(process, max(0.0, left) + _GRACE)
        lines = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
        found = {line["name"]: line for line in lines if "name" in line}
        begun = [line["begun"] for line in lines if line.get("begun") not in (None, *found)]
        if status == 0 and not begun:
            break
        why = "out of time" if status is None else f"its process ended with status {status}"
        lost = {"name": begun[-1], "failed": why} if begun else {"name": "worker", "failed": why}
        found[lost["name"]] = lost
        with records.open("a") as file:
            file.write(json.dumps(lost) + "\n")
        if status is None or not begun or records.stat().st_size == before:
            break  # no later worker would get further
    listed = [name for line in lines for name in line.get("cases", ())]
    return found | {name: {"name": name, "not_run": NO_TIME} for name in listed if name not in found}


def _ended(process: subprocess.Popen[Any], seconds: float) -> int | None:
    """The exit status; None if it took longer: then it and all that it started are ended."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


if __name__ == "__main__":
    sys.exit(main())
