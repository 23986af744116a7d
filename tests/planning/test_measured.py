"""The predicted peak is what a process then holds: to 10% when measured, to 20% here, where the machine may be busy.

Allocators must give memory back at once for that (see the program): what they keep otherwise is not predicted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from efcn_sparse import extension_status

_SLACK = 0.20
_CASES = ("vanilla local adamw fused 250", "vanilla lowrank16 momentum - 64")
_MORE_CASES = ("vanilla local sgd - 250", "vanilla local sgd-inside - 250", "vanilla dilated1 momentum - 64")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.skipif(not extension_status().available, reason="the reference backend's temporaries are not predicted")
@pytest.mark.parametrize("cases", [_CASES, pytest.param(_MORE_CASES, marks=pytest.mark.slow)])
def test_peak_of_a_step(cases: tuple[str, ...]) -> None:
    program = Path(__file__).with_name("measured_steps.py")
    settings = {"PYTHONPATH": str(program.parents[2]), "OMP_NUM_THREADS": "1", "EFCN_KEEP_MEMORY": "off"}
    settings["MALLOC_MMAP_THRESHOLD_"] = "131072"
    command = [sys.executable, str(program), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        predicted, measured = map(int, line.split())
        assert abs(predicted / measured - 1) < _SLACK, f"{case}: predicted {predicted:,}, measured {measured:,}"
