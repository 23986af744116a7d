"""Other tiles are compared, timed in turn with the table's, and the faster ones are a tuning file; compiled ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu import alternatives, page, summary, warm
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import GROUPS, OPERATIONS, Net, Product, specs
from benchmarks.gpu.results import Results
from efcn_sparse.measure import tune
from efcn_sparse.measure.gpu_clock import DryClock, Timing
from efcn_sparse.ops.backends.triton import plan, search, tuning
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tuning import Config
from tests.table import GPU

pytestmark = pytest.mark.skipif(GPU, reason="times are pretended, on the interpreter")
CASE = Product(16, 64, 32, 0.5, 16)
H100 = Device("sm90", 132, 232448, "H100")


LAUNCHED: list[tuple[str, Config | None]] = []  # operation and forced configuration, by calls of tune


class _Clock(DryClock):
    """A clock that finds K tiles of 16 four times as fast, but for SDDMM, and the dense product in 1 µs."""

    def time(self, call: Callable[[], Any]) -> Timing:
        return self.time_together(call)[0]

    def time_together(self, *calls: Callable[[], Any]) -> list[Timing]:
        timings = []
        for call in calls:
            LAUNCHED.clear()
            call()
            slow = any(name == "sddmm" or config is None or config.block_k != 16 for name, config in LAUNCHED)
            seconds = 4e-6 if slow else 1e-6
            timings.append(Timing(seconds, seconds, seconds, 1, "pretended"))
        return timings


@pytest.fixture(autouse=True)
def _noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("spmm", "sddmm"):
        monkeypatch.setattr(tune, name, _noting(name, getattr(tune, name)))


def _noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        LAUNCHED.append((name, tuning.forced()))
        return function(*arguments, **named)

    return run


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(search, "_DEPTHS", (16, 32))
    bench = replace(Bench.make(dry=True), clock=_Clock(), dry=False)
    monkeypatch.setattr(alternatives, "_MOST", 8)
    monkeypatch.setattr(Bench, "is_broken", lambda self: False)
    return {"kind": "alternatives"} | alternatives.measure(bench, CASE)


def test_the_faster_tiles_are_rows(record: dict[str, Any], tmp_path: Path) -> None:
    forward, dx, dw = record["operations"]
    for one in (forward, dx):
        assert (one["before"], one["after"]) == (4e-6, 1e-6)
        assert one["row"]["config"]["block_k"] == 16
        assert one["fraction_after"] == pytest.approx(0.5 * 1e-6 / 1e-6)
        assert one["fraction_before"] == pytest.approx(one["fraction_after"] / 4)
        assert one["times"][0][1] == 1e-6 < one["times"][-1][1] == 4e-6
        assert one["tried"] == len(one["times"]) > 2
    assert "row" not in dw
    assert dw["best"] == dw["present"]
    results = Results(tmp_path)
    results.add({"name": "alternatives: x", "group": "tuning", "result": record})
    (written,) = (path for path in results.finish() if "tuning" in path.name)
    table = tuning.read(written)
    assert [row.case.operation for row in table] == ["spmm", "spmm_t"]
    assert all(row.config.block_k == 16 and "measured on " in row.source for row in table)
    text = page.markdown(results.records)
    assert text.count("**4.00**") == 2
    assert "2 of 3 operations have a faster one" in summary.text(results.records)
    assert "4.00×, of dense 0.12 → 0.50; " in summary.text(results.records)


def test_no_rows_no_file(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add({"name": "x", "group": "tuning", "failed": "RuntimeError: no"})
    assert len(results.finish()) == 2


def test_a_wrong_tile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tune.sddmm

    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        config = tuning.forced()
        found = right(*arguments, **named)
        return found if config == present else found + 0.1

    bench = replace(Bench.make(dry=True), clock=_Clock())
    wanted = tune.Wanted("x", next(alternatives._patterns(CASE))[1], CASE.batch, torch.bfloat16)
    present = plan.configure(list(tune.problems_of([wanted], "cpu"))[2][1])
    monkeypatch.setattr(tune, "sddmm", wrong)
    dw = alternatives.measure(bench, CASE)["operations"][2]
    assert len(dw["left_out"]) == 2
    assert all("from the present one's" in why for why in dw["left_out"])
    assert dw["best"] == dw["present"]


def test_what_fails_is_told_with_its_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(tune, "sddmm", fails)
    record = {"kind": "alternatives"} | alternatives.measure(replace(Bench.make(dry=True), clock=_Clock()), CASE)
    text = page.markdown([{"name": "alternatives: x", "group": "tuning", "result": record}])
    assert f"alternatives: x, operations {CASE} dw: RuntimeError: no such kernel" in text
    monkeypatch.setattr(tune, "spmm", fails)
    with pytest.raises(RuntimeError, match="every operation failed, the first with RuntimeError: no such kernel"):
        alternatives.measure(replace(Bench.make(dry=True), clock=_Clock()), CASE)


def test_each_of_them_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job for job in warm.jobs(GROUPS) if job[0] == "alternatives"]
    asked = [spec.argument for spec in specs(GROUPS, dry=False) if spec.kind == "alternatives"]
    assert {job[1] for job in jobs} == set(asked)
    assert {job[2] for job in jobs if isinstance(job[1], Product)} == set(OPERATIONS)
    assert {job[2][1] for job in jobs if isinstance(job[1], Net)} == set(OPERATIONS)
    launched: list[Any] = []
    monkeypatch.setattr(warm, "_one", lambda *_, **__: lambda: launched.append(tuning.forced()))
    monkeypatch.setattr(tune, "device_of", lambda _: H100)
    case = next(case for case in asked if isinstance(case, Product))
    wanted = tune.Wanted("x", next(alternatives._patterns(case))[1], case.batch, torch.bfloat16)
    for operation, (_, problem) in zip(OPERATIONS, tune.problems_of([wanted], "cpu"), strict=True):
        launched.clear()
        warm.run(("alternatives", case, operation), H100)
        assert launched == alternatives.configs(problem)
        assert len(launched) > 5
