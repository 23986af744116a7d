"""One process that measures: it reads which cases are wanted, and prints a record after each.

Started by ``benchmarks/gpu/run.py``, which starts another one where this one is lost.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import alternatives, environment, huge, layers, products, reading, rivals, steps
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import GROUPS, Spec, specs
from benchmarks.gpu.protocol import Job, run_jobs

KINDS: dict[str, Callable[[Bench, Any], dict[str, Any]]] = {
    "environment": lambda bench, _: environment.describe(bench),
    "ceilings": lambda bench, _: bench.ceilings().record(),
    "clocks": lambda bench, _: environment.clocks(),
    "product": products.measure,
    "rivals": rivals.measure,
    "layers": layers.measure,
    "step": steps.measure,
    "reading": reading.measure,
    "huge": huge.measure,
    "alternatives": alternatives.measure,
}


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, or ``protocol.RESTART`` if the device is lost to this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args(arguments).dry_run
    asked = json.load(sys.stdin)
    deadline = time.monotonic() + asked["seconds"]
    if dry:
        torch.set_num_threads(1)
    bench, wanted = Bench.make(dry), set(asked["names"])
    jobs: list[Job] = [
        (spec.name, spec.group, spec.seconds, lambda s=spec: _measure(bench, s))  # type: ignore[misc]
        for spec in specs(GROUPS, dry)
        if spec.name in wanted
    ]
    return run_jobs(jobs, lambda: deadline - time.monotonic(), bench.is_broken)


def _measure(bench: Bench, spec: Spec) -> dict[str, Any]:
    try:
        return {"kind": spec.kind} | KINDS[spec.kind](bench, spec.argument)
    finally:
        gc.collect()
        if not bench.dry and spec.group != "products":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
