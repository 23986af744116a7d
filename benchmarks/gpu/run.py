"""Everything that needs a GPU, in one go: the tests on it, then all measurements, the most important first.

    python benchmarks/gpu/run.py [--minutes 9] [--only suite products rivals nets] [--results DIR] [--dry-run]

Needs torch and Triton, and pytest for the tests; no network, no installed package, no compiled extension. Writes
``<device>-<date>.json`` after every case and ``.md`` at the end. What does not fit the time is listed as not run.
``--dry-run`` goes through all of it on a CPU with tiny shapes, to see that it does; its numbers say nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # in place of this folder, whose modules are named from the root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.gpu import suite
from benchmarks.gpu.cases import GROUPS, specs
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervise import supervise

ROOT = suite.ROOT
_SHARE_OF_SUITE, _LONGEST_SUITE = 0.35, 200.0
_RESERVE = 10.0  # seconds, for the last case and the page


def main(arguments: list[str] | None = None) -> int:
    """Run it all; 1 if a test or a measurement failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything together (default: 9)")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all of them")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--commit", help="what is measured, where there is no git (default: ask git)")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60.0 * options.minutes - _RESERVE
    results = Results(options.results)
    if "suite" in options.only:
        limit = min(_LONGEST_SUITE, _SHARE_OF_SUITE * 60.0 * options.minutes)
        suite.run_all(options.dry_run, min(limit, deadline - time.monotonic()), results.add)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    environment["TRITON_INTERPRET"] = "1" if options.dry_run else "0"
    environment.setdefault("TRITON_CACHE_DIR", str(suite.CACHE))
    if options.commit:
        environment["EFCN_COMMIT"] = options.commit
    command = [sys.executable, "-m", "benchmarks.gpu.worker", *(["--dry-run"] if options.dry_run else [])]
    cases = {spec.name: spec.group for spec in specs(options.only, options.dry_run)}
    supervise(command, cases, deadline, results.add, cwd=ROOT, env=environment)
    paths = results.finish()
    print("", results.page(), *(f"wrote {path}" for path in paths), sep="\n")
    return 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(main())
