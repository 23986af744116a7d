"""A net that diverges is recorded so and ends there; the others of the run go on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import efcn_sparse.training as training
from efcn_sparse.analysis.run_data import read_run
from efcn_sparse.cli.relax import outcome
from efcn_sparse.training.run.relax import unfinished
from tests.training.runs import KINDS, rows


def last_losses(run_dir: Path) -> dict[tuple[str, str], float]:
    return {(row["arm"], row["relax_epoch"]): float(row["train_loss"]) for row in rows(run_dir, "metrics")}


def test_relaxed_nets_that_diverge_are_recorded_and_the_rest_is_trained(tmp_path, capsys):
    wild = dataclasses.replace(KINDS["diverging"], lr=0.1, relaxed_lr=1e20)
    run_dir = training.run_relax(wild, tmp_path / "run")
    losses = last_losses(run_dir)
    assert len(losses) == 2 + 2 * 4  # nothing was left out
    for (arm, time), loss in losses.items():
        assert math.isfinite(loss) == (arm in ("cnn", "fcn")), (arm, time)
    assert "efcn-grown1.3-seed0-t0: epoch 1, diverged at learning rate 1e+20" in capsys.readouterr().out.splitlines()
    assert unfinished(wild, run_dir) == []
    assert outcome(run_dir).splitlines()[3].split() == ["cnn-relaxed", "-", "diverged", "diverged"]
    assert len(read_run(run_dir).traces) == len(losses)


def test_what_would_be_embedded_from_a_diverged_cnn_is_recorded(tmp_path, capsys):
    wild = KINDS["diverging"]
    run_dir = training.run_relax(wild, tmp_path / "run")
    told = capsys.readouterr().out
    assert "cnn-seed0: epoch 1, diverged at learning rate 1e+09" in told
    assert "efcn-grown1.3-seed0-t1: epoch 1, not embedded, since its CNN has diverged" in told
    losses = last_losses(run_dir)
    assert all(math.isfinite(loss) == (time == "0" or arm == "fcn") for (arm, time), loss in losses.items())
    assert len([row for row in rows(run_dir, "metrics") if row["relax_epoch"] == "1"]) == 4
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert training.run_relax(wild, run_dir) == run_dir
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
