"""The measuring script's worker on tiny shapes, through its CUDA branch, which ``--dry-run`` does not take.

``python -m tests.host_cuda python -m tests.host_cuda.measure`` prints each record; exits with 1 if anything failed.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import cases, ceilings, worker
from efcn_sparse.measure import gpu_clock
from efcn_sparse.models import MODELS

TINY = cases.Net("tiny", 8, 2)
ABSENT = ("stk", "blksprs", "torch.sparse_bsr")  # rivals: not installed, or with kernels that are not interpreted


def _net(classes: int) -> nn.Module:
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, classes))


def _tiny() -> list[cases.Spec]:
    """The kinds of cases of the dry run, with a net that is interpreted in seconds."""
    return [
        dataclasses.replace(spec, name=f"{spec.kind} {number}", argument=TINY)
        if isinstance(spec.argument, cases.Net)
        else spec
        for number, spec in enumerate(cases._dry())
    ]


def main() -> int:
    torch.set_num_threads(1)
    MODELS["tiny"] = _net
    cases._real = _tiny
    gpu_clock._WARM_UPS, gpu_clock._ROUNDS, gpu_clock._LEAST_FLUSH = 1, 2, 1 << 12
    measured = ceilings.measure
    ceilings.measure = lambda bench: measured(dataclasses.replace(bench, dry=True))  # only its sizes depend on it
    sys.stdin = io.StringIO(json.dumps({"names": [spec.name for spec in _all()], "seconds": 600.0}))
    printed = io.StringIO()
    with redirect_stdout(printed):
        status = worker.main([])
    lines = [json.loads(line[line.index("{") :]) for line in printed.getvalue().splitlines() if "{" in line]
    records = {line["record"]["name"]: line["record"] for line in lines if "record" in line}
    failures = [failure for name, record in records.items() for failure in _failures(record, name)]
    failures += [f"{spec.name}: no record" for spec in _all() if spec.name not in records]
    print(*records.values(), f"{len(records)} records, status {status}", *failures, sep="\n")
    return int(status != 0 or bool(failures))


def _all() -> list[cases.Spec]:
    return cases.specs(cases.GROUPS, dry=False)


def _failures(found: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict):
        if "failed" in found and not any(rival in path for rival in ABSENT):
            yield f"{path}: {found['failed']}"
        for key, value in found.items():
            yield from _failures(value, f"{path} / {key}")


if __name__ == "__main__":
    sys.exit(main())
