"""The page of expected and measured times is made of both, for each case."""

from __future__ import annotations

import re

import pytest
from torch import nn

from efcn_sparse.measure import step_rates
from efcn_sparse.measure.shapes import RooflineShapes
from experiments import step_times
from experiments.step_times import Case, main


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))


def test_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step_rates, "_SECONDS", 0.0)
    monkeypatch.setattr(step_rates, "_ROOFLINE", RooflineShapes(gemm_size=64, array_mb=1, rounds=1))
    cases = {"tiny": Case(_net, (3, 8, 8), 4), "tiny, fused": Case(_net, (3, 8, 8), 4, fused=True)}
    monkeypatch.setattr(step_times, "CASES", cases)
    main(["--rounds", "2", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [re.fullmatch(r"\| (tiny.*) \| (.+) ms \| \d+% \| (.+) ms \(.+ to .+\) \| (.+) \|", line) for line in lines]
    found = [row for row in rows if row is not None]
    assert [row[1] for row in found] == list(cases)
    for row in found:
        assert float(row[4]) == pytest.approx(float(row[2]) / float(row[3]), rel=0.05, abs=0.006)


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--threads", "0"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "--threads must be at least 1 and --rounds 2, got " in capsys.readouterr().err
