"""One process that measures: for each case it appends that it begins, then what it found. Started by ``run.py``."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import measurements
from benchmarks.gpu.cases.bench import Bench


def main(arguments: list[str] | None = None) -> int:
    """0, or 3 if the device is lost to this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("groups", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    bench = Bench.make(options.dry_run)
    todo = measurements(options.groups, options.dry_run)
    done = options.records.read_text() if options.records.exists() else ""
    finished = {json.loads(line).get("name") for line in done.splitlines()}
    with options.records.open("a") as file:

        def tell(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        tell(cases=[one.name for one in todo])
        for one in todo:
            if one.name in finished:
                continue
            if time.monotonic() >= deadline and one.group != "device":
                break
            tell(begun=one.name)
            try:
                record = one.call(bench)
            except Exception as error:
                record = {"failed": f"{type(error).__name__}: {error}"[:500]}
            print(f"{one.name}: {record.get('failed', 'done')}", flush=True)
            tell(name=one.name, group=one.group, **record)
            if bench.is_broken():
                return 3
            gc.collect()
            if not bench.dry:
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
