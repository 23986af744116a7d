"""The GPU's benchmark goes through all of it on a CPU, has no speed for what is wrong, and loses nothing to a crash."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu import run
from benchmarks.gpu.cases.products import checked
from efcn_sparse.measure.gpu_clock import Clock
from tests.table import GPU, needs_triton


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(GPU, reason="a dry run is on the CPU")
def test_a_dry_run_goes_through_everything(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--dry-run", "--results", str(tmp_path)]) == 0
    (found,) = (json.loads(path.read_text()) for path in tmp_path.glob("dry-run-*.json"))
    assert found["suite"]["status"] == 0
    assert found["device"]["device"] == "dry run"
    products, steps = ([case for case in found["cases"] if case["group"] == group] for group in ("products", "steps"))
    assert all(case[operation]["relative_error"] < 1e-2 for case in products for operation in ("forward", "dx", "dw"))
    assert all(case["eFCN, fp32 weights"]["times_cnn"] > 0 for case in steps)
    (page,) = (path.read_text() for path in tmp_path.glob("dry-run-*.md"))
    assert "| 64×64, blocks 16, 25%, N=16 | dw |" in page
    assert "eFCN, bf16 weights, SGD inside dW" in page
    assert page in capfd.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".log", ".md"]


def _once(right: torch.Tensor, wrong: Callable[[int], torch.Tensor | float]) -> Callable[..., torch.Tensor]:
    """A call that is off by ``wrong(number of the call)``."""
    calls = []

    def call(out: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(1)
        found = (right + wrong(len(calls))).bfloat16()
        return found if out is None else out.copy_(found)

    return call


def test_what_is_wrong_has_no_speed() -> None:
    right = torch.randn(16, 16).bfloat16().float()
    assert checked(_once(right, lambda _: 0.0), right) == 0.0
    with pytest.raises(AssertionError, match=r"must be within 0.01 of the dense product in fp32, got"):
        checked(_once(right, lambda _: 0.1), right)
    with pytest.raises(AssertionError, match="a second call must give the same bits"):
        checked(_once(right, lambda number: 1e-2 * (number - 1)), right)
    with pytest.raises(AssertionError, match="got nan"):  # an entry that is left as it was
        checked(lambda out: out, right)


WORKER = """
import json, os, sys, time
records, names = sys.argv[1], ["one", "dies", "two", "fails", "hangs", "three"]
done = {json.loads(line).get("name") for line in open(records)} if os.path.exists(records) else set()
file = open(records, "a")
def tell(**line):
    file.write(json.dumps(line) + "\\n"); file.flush()
tell(cases=names)
for name in names:
    if name not in done:
        tell(begun=name)
        if name == "dies": os.kill(os.getpid(), 9)
        if name == "hangs": time.sleep(60)
        tell(name=name, **({"failed": "wrong"} if name == "fails" else {}))
"""


def test_a_case_that_dies_or_hangs_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_GRACE", 0.0)
    records = tmp_path / "records"
    found = run.measure([sys.executable, "-c", WORKER, str(records)], records, time.monotonic() + 2.0)
    assert found == {
        "one": {"name": "one"},
        "dies": {"name": "dies", "failed": "its process ended with status -9"},
        "two": {"name": "two"},
        "fails": {"name": "fails", "failed": "wrong"},
        "hangs": {"name": "hangs", "failed": "out of time"},
        "three": {"name": "three", "not_run": run.NO_TIME},
    }


def test_a_worker_that_never_begins_is_told(tmp_path: Path) -> None:
    records = tmp_path / "records"
    found = run.measure([sys.executable, "-c", "raise SystemExit(5)"], records, time.monotonic() + 60.0)
    assert found == {"worker": {"name": "worker", "failed": "its process ended with status 5"}}


def test_a_suite_that_takes_too_long_keeps_what_it_found(tmp_path: Path) -> None:
    script = "import time; print('t.py::a PASSED'); print('t.py::b FAILED', flush=True); time.sleep(60)"
    found = run.run_suite([sys.executable, "-c", script], 2.0, tmp_path / "log", True)
    assert found == {
        "status": None, "failed_tests": ["t.py::b FAILED"],
        "summary": "not finished after 2 seconds; 1 passed, 1 failed until then",
    }  # fmt: skip


def test_a_capture_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for torch.cuda that behaves as torch 2.11."""
    state: dict[str, Any] = {"stream": "main", "random is captured": False}

    class Graph:
        def __init__(self, graph: object) -> None:
            pass

        def __enter__(self) -> None:
            self.before = state["stream"]
            state.update({"stream": "capture", "random is captured": True})

        def __exit__(self, kind: object, *_: object) -> None:
            if kind is None:  # else the end of the capture raises, and what follows it is left out
                state.update({"stream": self.before, "random is captured": False})

    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {"replay": lambda self: None}))
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: state["stream"])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: state.update(stream=stream))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    clock, calls = object.__new__(Clock), []
    clock._failed = []
    monkeypatch.setattr(Clock, "flush", lambda self: calls.append("flush"))

    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        clock._captured(fail, 1)
    assert state == {"stream": "main", "random is captured": False}
    assert calls == ["flush", "flush"]
    clock._captured(lambda: calls.append("call"), 2)
    assert calls == ["flush", "flush", "flush", "call", "flush", "call"]
