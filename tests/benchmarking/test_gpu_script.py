"""The GPU script goes through on a CPU; a case that fails, dies or hangs costs no other; the time budget holds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import page, suite, summary
from benchmarks.gpu.break_even import break_even
from benchmarks.gpu.cases import GROUPS, OPERATIONS, specs
from benchmarks.gpu.protocol import NO_TIME, RESTART, run_jobs
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervise import supervise

ROOT = Path(__file__).parents[2]


def test_a_dry_run_goes_through(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu/run.py", "--dry-run", "--minutes", "5", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (written,) = (path for path in tmp_path.glob("*.json") if not path.stem.endswith("-tuning"))
    records = json.loads(written.read_text())["records"]
    assert [record["name"] for record in records] == [
        *(part.name for part in suite.PARTS),
        *(spec.name for spec in specs(GROUPS, dry=True)),
    ]
    assert all("result" in record for record in records)
    assert written.name.startswith("dry-run")
    text = written.with_suffix(".md").read_text()
    for heading in ("Products", "Rivals", "Training steps", "Layers", "Subspace reading", "Other tiles", "Failed"):
        assert f"\n## {heading}\n" in text
    assert "Its numbers say nothing" in text
    assert done.stdout.endswith(summary.text(records) + "\n")  # what is printed last
    assert " 0 not run for want of time" in done.stdout
    assert "tests/triton/test_work.py" in (tmp_path / "suite.log").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_dir()]
    products = [record["result"] for record in records if record["group"] == "products"]
    assert all(0 < case[operation]["relative_error"] < 1e-2 for case in products for operation in OPERATIONS)


def test_names_are_distinct_and_the_important_comes_first() -> None:
    for dry in (False, True):
        names = [spec.name for spec in specs(GROUPS, dry)]
        assert len(set(names)) == len(names)
        assert names[:2] == ["environment", "ceilings"]
    chosen = specs(["products"], dry=False)
    assert {spec.group for spec in chosen} == {"device", "products"}
    assert chosen[2].argument.batch == 8192
    assert len(chosen) == 4 * 2 * 4 * 4 + 3 + 3


WORKER = """
import json, os, sys, time
from benchmarks.gpu.protocol import run_jobs
asked = json.load(sys.stdin)
deadline = time.monotonic() + asked["seconds"]
def fails(): raise ValueError("on purpose")
jobs = {
    "good": lambda: {"found": 1},
    "fails": fails,
    "breaks": fails,
    "dies": lambda: (print("some last words", file=sys.stderr), os._exit(7)),
    "hangs": lambda: time.sleep(60),
    "slow": lambda: {"slept": time.sleep(0.4)},
    "last": lambda: {"found": os.getpid()},
}
def broken(): return last[0] == "breaks"
last = [None]
def started(name):
    last[0] = name
    return jobs[name]()
wanted = [(name, "group", 0.3 if name == "slow" else 0.0, lambda n=name: started(n)) for name in asked["names"]]
sys.exit(run_jobs(wanted, lambda: deadline - time.monotonic(), broken))
"""


def _supervised(names: list[str], seconds: float, grace: float = 5.0) -> dict[str, dict[str, Any]]:
    records: list[dict[str, Any]] = []
    supervise(
        [sys.executable, "-c", WORKER], dict.fromkeys(names, "group"), time.monotonic() + seconds, records.append,
        longest=1.0, grace=grace, cwd=ROOT,
    )  # fmt: skip
    assert sorted(record["name"] for record in records) == sorted(names)
    return {record["name"]: record for record in records}


def test_a_case_that_fails_dies_or_hangs_costs_no_other() -> None:
    found = _supervised(["good", "fails", "breaks", "dies", "hangs", "last"], seconds=60)
    assert found["good"]["result"] == {"found": 1}
    assert found["fails"]["failed"] == found["breaks"]["failed"] == "ValueError: on purpose"
    assert "status 7: some last words" in found["dies"]["failed"]
    assert "without an answer" in found["hangs"]["failed"]
    assert found["last"]["result"]["found"] > 0


def test_what_does_not_fit_the_time_is_not_begun() -> None:
    began = time.monotonic()
    found = _supervised(["good", "slow", "hangs", "last"], seconds=0.2, grace=0.2)
    assert found["slow"]["not_run"] == NO_TIME  # it may take longer than is left
    assert "without an answer" in found.get("hangs", {}).get("failed", "without an answer")
    assert found["last"].get("not_run") == NO_TIME
    assert time.monotonic() - began < 30
    assert all(record["not_run"] == NO_TIME for record in _supervised(["good", "last"], seconds=-1).values())


def test_a_worker_that_cannot_start_is_one_clear_failure() -> None:
    records: list[dict[str, Any]] = []
    command = [sys.executable, "-c", "raise SystemExit('no such device')"]
    supervise(command, {"one": "a", "two": "b"}, time.monotonic() + 30, records.append)
    assert [record["name"] for record in records] == ["one", "two"]
    assert all("no such device" in record["failed"] for record in records)


def test_a_lost_device_ends_the_worker() -> None:
    def lost() -> dict[str, Any]:
        raise RuntimeError("an illegal memory access")

    told: list[dict[str, Any]] = []
    jobs = [("one", "g", 0.0, lost), ("two", "g", 0.0, lambda: {})]
    assert run_jobs(jobs, lambda: 1.0, lambda: True, told.append) == RESTART
    assert [list(message) for message in told] == [["begin"], ["record"]]


def test_every_record_is_on_the_disk_at_once(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add({"name": "suite", "group": "suite", "failed": "2 failed"})
    assert json.loads((tmp_path / "gpu-run.json").read_text())["records"][0]["failed"] == "2 failed"
    device = {"device": "NVIDIA H200", "date": "2026-01-02T03:04:05+00:00"}
    results.add({"name": "environment", "group": "device", "result": device | {"kind": "environment"}})
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200-2026-01-02.json"]
    results.add({"name": "a product", "group": "products", "not_run": NO_TIME})
    assert len(json.loads((tmp_path / "nvidia-h200-2026-01-02.json").read_text())["records"]) == 3
    assert results.failures == ["suite"]
    text = results.finish()[1].read_text()
    assert text.startswith("# NVIDIA H200, 2026-01-02\n")
    assert "- suite: 2 failed" in text
    assert "- a product" in text


def test_failures_of_parts_are_on_the_page() -> None:
    layers = [{"layer": "conv1", "count": 1, "block": [64, 6], "failed": "RuntimeError: no room"}]
    step = {"CNN": {"failed": "RuntimeError: out of memory"}, "model": "vanilla", "pixels": 32, "batch": 2, "goal": 1.5}
    text = page.markdown([
        {"name": "layers: x", "group": "nets", "result": {"kind": "layers", "model": "vanilla", "layers": layers}},
        {"name": "step: x", "group": "nets", "result": {"kind": "step"} | step},
    ])  # fmt: skip
    assert "- layers: x, layers conv1: RuntimeError: no room" in text
    assert "- step: x, CNN: RuntimeError: out of memory" in text


def _product(block: int, batch: int, failed: str = "") -> dict[str, Any]:
    measured = {
        "time": {"seconds": 1e-4}, "fraction_of_dense_rate": 0.9, "goal_met": True, "predicted_fraction": 0.5,
        "times_faster_than_dense": 2.0, "relative_error": 1e-3,
    }  # fmt: skip
    case = {
        "kind": "product",
        "out_features": 4096,
        "in_features": 4096,
        "block": block,
        "density": 0.1,
        "batch": batch,
    }
    return case | {operation: {"failed": "wrong"} if operation == failed else measured for operation in OPERATIONS}


def test_a_product_that_is_wrong_has_no_speed_and_its_case_keeps_the_rest() -> None:
    record = {"name": "a product", "group": "products", "result": _product(128, 8192, failed="dw")}
    text, short = page.markdown([record]), summary.text([record])
    assert "- a product, dw: wrong" in text
    assert "| **0.90** | 0.50 | failed |" in text
    assert "a product, dw: wrong" in short
    assert "0.90*(0.50) 100µs  FAILED" in short
    assert "dw" not in break_even([record["result"]])["4096×4096", 128, 8192]


def test_the_summary_is_short_whatever_happens() -> None:
    failed = [{"name": f"case {i}", "group": "products", "failed": "no " * 400} for i in range(200)]
    products = [{"name": f"p{i}", "group": "products", "result": _product(2**i, 8192)} for i in range(4, 8)] * 40
    text = summary.text([*products, *failed])
    assert len(text) <= summary.MOST
    assert "products, N=8192" in text


@pytest.mark.parametrize(
    ("faster", "expected"),
    [((4.0, 0.5), ("", 0.05 + 0.45 * 0.75 / 1.75)), ((4.0, 2.0), ("> ", 0.5)), ((0.5, 0.2), ("< ", 0.05))],
)
def test_break_even(faster: tuple[float, float], expected: tuple[str, float]) -> None:
    cases = [
        {"out_features": 8, "in_features": 4, "block": 2, "batch": 1, "density": density}
        | {operation: {"times_faster_than_dense": ratio} for operation in OPERATIONS}
        for density, ratio in zip((0.05, 0.5), faster, strict=True)
    ]
    found = break_even(cases[::-1])["8×4", 2, 1]
    assert found["dw"][0] == expected[0]
    assert found["dw"][1] == pytest.approx(expected[1])


def test_the_suite_is_cut_off_and_what_it_printed_is_kept() -> None:
    part = suite.PARTS[0]
    lines = "tests/one.py::a PASSED [ 1%]\\n[gw1] [ 2%] FAILED tests/one.py::b"
    slow = [sys.executable, "-u", "-c", f"import time; print('{lines}'); time.sleep(60)"]
    record = suite.run(part, True, 2.0, slow)
    assert record["name"] == part.name
    assert record["failed"] == "not finished after 2 seconds, 1 passed, 1 failed until then"
    assert record["result"]["failed_tests"] == ["[gw1] [ 2%] FAILED tests/one.py::b"]
    assert suite.run(part, True, 0.0)["not_run"] == NO_TIME
    assert "failed" not in suite.run(part, True, 20.0, [sys.executable, "-c", "print('3 passed')"])
    assert suite.run(part, True, 20.0, ["/no/such/program"])["failed"].startswith("FileNotFoundError")


def test_the_parts_of_the_suite_are_all_of_it_and_the_most_telling_comes_first() -> None:
    tests = [test for part in suite.PARTS for test in part.tests if not test.startswith("--ignore=")]
    assert tests[0] == "tests/triton/test_cuda.py"
    assert suite.PARTS[1].tests[0] == "tests/ops/test_accuracy.py"
    assert {"tests/ops", "tests/triton", "tests/subspace"} <= set(tests)
    assert all((ROOT / test).exists() for test in tests)
    left_out = {test.removeprefix("--ignore=") for test in suite.PARTS[-1].tests if test.startswith("--ignore=")}
    assert left_out - set(tests) == {"tests/triton/test_compile_ahead.py"}
    assert suite.PARTS[-1].share == 1.0
    for part in suite.PARTS:
        assert suite.command(part, dry=False)[-len(part.tests) :] == list(part.tests)
