"""Everything that needs a GPU, in one go: the tests on it, then all measurements, the most important first.

    python benchmarks/gpu/run.py [--minutes 9] [--only suite products rivals nets tuning] [--profile] [--results DIR]

Needs torch and Triton, and pytest for the tests; no network, no installed package, no compiled extension. Writes
``<device>-<date>.json`` after every case, ``.md`` and ``-tuning.json`` (tiles that were faster than the table's) at
the end, and what the tests print to ``suite.log``. What does not fit the time is listed as not run. While the tests
run, the kernels of the measurements are compiled on all cores.
``--dry-run`` goes through all of it on a CPU with tiny shapes, to see that it does; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

if __name__ == "__main__":  # in place of this folder, whose modules are named from the root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu import counters, suite
from benchmarks.gpu.cases import GROUPS, specs
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervise import supervise

ROOT = suite.ROOT
_SHARE_OF_SUITE, _LONGEST_SUITE = 0.35, 200.0
_RESERVE = 10.0  # seconds, for the last case and the page
_LONGEST_WARMING = 90.0


def main(arguments: list[str] | None = None) -> int:
    """Run it all; 1 if a test or a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything together (default: 9)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all of them")
    parser.add_argument(
        "--profile", action="store_true", help="read the GPU's counters at the end, with ncu, 85 s at most"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--commit", help="what is measured, where there is no git (default: ask git)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60.0 * options.minutes - _RESERVE
    deadline = end - (counters.LONGEST if options.profile else 0.0)
    environment = _environment(options.dry_run, options.commit)
    results = Results(options.results)
    with _warming(options.only, environment, options.dry_run):
        if "suite" in options.only:
            limit = min(_LONGEST_SUITE, _SHARE_OF_SUITE * 60.0 * options.minutes)
            log = options.results / "suite.log"
            log.unlink(missing_ok=True)
            suite.run_all(options.dry_run, min(limit, deadline - time.monotonic()), results.add, log)
    command = [sys.executable, "-m", "benchmarks.gpu.worker", *(["--dry-run"] if options.dry_run else [])]
    cases = {spec.name: spec.group for spec in specs(options.only, options.dry_run)}
    supervise(command, cases, deadline, results.add, cwd=ROOT, env=environment)
    if options.profile:
        seconds = min(counters.LONGEST, end - time.monotonic())
        results.add(counters.measure(options.results, environment, seconds))
    paths = results.finish()
    print("", *(f"wrote {path}" for path in paths), results.summary(), sep="\n")
    return 1 if results.failures else 0


def _environment(dry: bool, commit: str | None) -> dict[str, str]:
    found = dict(os.environ, PYTHONPATH=str(ROOT), TRITON_INTERPRET="1" if dry else "0")
    found.setdefault("TRITON_CACHE_DIR", str(suite.CACHE))
    return found | ({"EFCN_COMMIT": commit} if commit else {})


@contextlib.contextmanager
def _warming(groups: list[str], environment: Mapping[str, str], dry: bool) -> Iterator[None]:
    """Compile meanwhile; whatever becomes of it, what is missing is compiled where it is first launched."""
    if dry:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.gpu.warm", "--groups", *groups]
    process = subprocess.Popen(
        command, cwd=ROOT, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    began = time.monotonic()
    try:
        yield
    finally:
        try:
            told = process.communicate(timeout=max(1.0, _LONGEST_WARMING - (time.monotonic() - began)))[0]
        except subprocess.TimeoutExpired:
            suite.end(process)
            told = f"ended after {_LONGEST_WARMING:.0f} s"
        print(f"compiled ahead: {told.strip()[-600:]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
