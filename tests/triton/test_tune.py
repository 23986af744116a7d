"""``efcn-sparse tune`` keeps the fastest configuration that is right, at once, and goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efcn_sparse.cli import tune as command
from efcn_sparse.cli.main import main
from efcn_sparse.measure import tune
from efcn_sparse.measure.gpu_clock import Clock, Timing
from efcn_sparse.ops.backends.triton import plan, tiles, tuning
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tiles import Case, Config
from efcn_sparse.ops.backends.triton.tuning import Row, read
from tests.table import GPU, pattern

pytestmark = pytest.mark.skipif(GPU, reason="times are pretended, on the interpreter")
OTHER = Row(Case("spmm", "sm90", 16, 64, 64, 8192, 0.1, 4096), Config(64, 64, 64), "mine")


class _Pretended(Clock):
    """A clock that finds tiles of 128×64 fastest, and cannot launch those with N = 32."""

    def __init__(self) -> None:
        self.calls = 0

    def time(self, call: Callable[[], Any]) -> Timing:
        config = tuning._FORCED[-1]
        self.calls += 1
        if config.block_n == 32:
            raise RuntimeError("out of resource: shared memory")
        seconds = 16e-6 if (config.block_m, config.block_n) == (128, 64) else 64e-6
        return Timing(seconds, seconds, seconds, 1, "pretended")


def _wanted() -> list[tune.Wanted]:
    return [tune.Wanted("square", pattern("square"), 64, torch.float32)]


def _tune(output: Path, seconds: float = 1e6) -> tuple[list[tune.Found], list[str], _Pretended]:
    lines: list[str] = []
    clock = _Pretended()
    return tune.tune(_wanted(), output, clock, "cpu", seconds=seconds, tell=lines.append), lines, clock


def test_the_fastest_becomes_a_row_and_other_rows_stay(tmp_path: Path) -> None:
    tune.write(tmp_path / "own.json", (OTHER,))
    found, lines, _ = _tune(tmp_path / "own.json")
    table = read(tmp_path / "own.json")
    assert table[0] == OTHER
    assert [row.case.operation for row in table[1:]] == list(tiles.OPERATIONS)
    assert {(row.config.block_m, row.config.block_n) for row in table[1:]} == {(128, 64)}
    assert all(row.source.startswith("measured on ") for row in table[1:])
    assert all(one.after == 16e-6 < one.before for one in found)
    assert any("out of resource" in line for line in lines)
    assert any("64.0 → 16.0 µs (4.00×)" in line for line in lines)
    assert not list(tmp_path.glob(".own*"))  # nothing half written is left
    again, lines, clock = _tune(tmp_path / "own.json")
    assert (again, clock.calls) == ([], 0)
    assert all("measured already" in line for line in lines)


def test_a_wrong_result_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tune.spmm

    def wrong(*arguments: Any, **named: Any) -> torch.Tensor:
        y = right(*arguments, **named)
        return y if tuning._FORCED[-1].block_m == 64 else y + 0.1

    monkeypatch.setattr(tune, "spmm", wrong)
    one, problem = next(tune.problems_of(_wanted(), "cpu"))
    found = tune.tune_one(one, problem, _Pretended(), time.monotonic() + 1e6)
    assert found.config.block_m == 64
    assert any("from the present one's" in reason for reason in found.failed)


def test_nothing_is_begun_when_the_time_is_over(tmp_path: Path) -> None:
    found, lines, clock = _tune(tmp_path / "own.json", seconds=0.0)
    assert (found, clock.calls) == ([], 0)
    assert "out of time" in lines[-1]


def test_a_case_that_is_cut_short_is_done_again() -> None:
    one, problem = next(tune.problems_of(_wanted(), "cpu"))
    found = tune.tune_one(one, problem, _Pretended(), time.monotonic())
    assert (found.finished, found.tried, found.after) == (False, 1, found.before)


def test_the_command_runs_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "dry.json"
    assert main(["tune", "grid", "--dry-run", "--output", str(output)]) == 0
    assert {row.case.operation for row in read(output)} == set(tiles.OPERATIONS)
    told = capsys.readouterr()
    assert "3 cases timed, " in told.out
    assert f"EFCN_TUNING={output} uses the file" in told.out
    assert "[3/3] tiny, N=16, sddmm: " in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch must be integers of at least 1, got [0]"),
        (["--minutes", "0"], "--minutes must be more than 0, got 0.0"),
        (["--output", "/nowhere/own.json"], "--output must lie in a folder that is there, got /nowhere/own.json"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "grid", "--dry-run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_targets_are_models_patterns_and_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_target.py").write_text(
        "import torch, efcn_sparse as es\n"
        "def pattern():\n    return es.BlockPattern.dense((32, 16), (16, 16))\n"
        "def layers():\n    return torch.nn.Sequential(torch.nn.ReLU(), es.SparseLinear(16, 32, pattern()))\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)

    def patterns(target: str) -> list[tuple[str, Any]]:
        return command._patterns(SimpleNamespace(target=target, input=None))  # type: ignore[arg-type]

    assert [p.block_shape for _, p in patterns("vanilla")] == [(64, 6), (64, 64), (64, 64)]
    assert [p.shape for _, p in patterns("own_target:pattern")] == [(32, 16)]
    assert [(name, p.shape) for name, p in patterns("own_target:layers")] == [("1", (32, 16))]
    with pytest.raises(ValueError, match=r"TARGET must return a BlockPattern or an nn\.Module, got int"):
        patterns("own_target:number")


@pytest.mark.parametrize("limit", [227 << 10, 99 << 10])
def test_candidates_fit_the_device(limit: int) -> None:
    problem = plan.Problem.of("spmm", pattern("big-blocks"), 8192, torch.bfloat16, Device("sm90", 132, limit))
    present = plan.configure(problem)
    found = list(tune.candidates(problem, present))
    assert len(set(found)) == len(found) > 10
    assert all(plan.shared_memory(config, 2) <= limit for config in found)
    assert {(c.block_m, c.block_n) for c in found} > {(present.block_m, present.block_n)}
    assert len({c.stages for c in found}) > 1
