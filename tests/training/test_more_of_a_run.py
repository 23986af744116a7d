"""A run can be given more seeds, arms and relax times, and gets back the rows that its files have lost."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

import efcn_sparse.training as training
from efcn_sparse.cli.main import main
from tests.training.runs import checkpoints, cut_short, rows

SMALL = training.RelaxConfig.from_preset(
    "digits", seeds=(0,), arms=("cnn", "elcn"), cnn_epochs=3, relax_epochs=1, relax_times=(1,), fcn_epochs=1,
    momentum=0.9, lr=0.02, carry_momentum=True, batch_size=20, train_limit=60, test_limit=20, threads=1,
    growth_every=1,
)  # fmt: skip
LARGE = dataclasses.replace(SMALL, seeds=(1, 0), arms=("cnn", "fcn", "elcn", "efcn-grown1.5"), relax_times=(1, 2, 4),
                            cnn_epochs=4)  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.run_relax(LARGE, tmp_path_factory.mktemp("runs") / "large", quiet=True)


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same numbers, in whatever order they came."""
    for name in ("metrics", "layers"):
        first, second = (sorted(map(tuple, (row.items() for row in rows(run, name)))) for run in (one, other))
        assert first == second
    return checkpoints(one) == checkpoints(other)


def test_a_run_that_was_given_more_is_the_one_that_had_it_from_the_beginning(large, tmp_path):
    run_dir = training.run_relax(SMALL, tmp_path / "run", quiet=True)
    done = set(map(str, rows(run_dir, "metrics")))
    cut_short(9, LARGE, run_dir, checkpoint_seconds=10.0)
    training.run_relax(LARGE, run_dir, quiet=True)
    assert done <= set(map(str, rows(run_dir, "metrics")))
    assert same(run_dir, large)
    assert training.RelaxConfig.from_json((run_dir / "config.json").read_text()) == LARGE


def test_nothing_can_be_taken_away(large):
    told = (
        "seeds is (1, 0) there and (0,) here; arms is ('cnn', 'fcn', 'elcn', 'efcn-grown1.5') there and "
        "('cnn', 'elcn') here; relax_times is (1, 2, 4) there and (1,) here"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        training.run_relax(dataclasses.replace(SMALL, cnn_epochs=4), large)


def _refused(run_dir: Path, told: str) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"^metrics.csv and layers.csv of .* must have a row for each epoch") as caught:
        training.run_relax(LARGE, run_dir, quiet=True)
    assert told in str(caught.value)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (None, "cnn-seed1 epochs 0 to 5, fcn-seed1 epochs 0 to 1, elcn-seed1-t1 epochs 1"),
        (lambda text: text[: text.index(b"cnn,0,,2")], "cnn-seed0 epochs 2 to 5, fcn-seed0 epochs 0 to"),
    ],
    ids=["missing", "cut"],
)
def test_lost_rows_are_told_and_come_back(large, tmp_path, damage, told):
    run_dir = shutil.copytree(large, tmp_path / "run")
    file = run_dir / "metrics.csv"
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    _refused(run_dir, told)
    training.run_relax(LARGE, run_dir, quiet=True, repair=True)
    assert same(run_dir, large)


DAMAGED_LINES = [
    ("metrics.csv", b"cnn,0,,3,", b"cnn,0,,\0,", "got none of cnn-seed0 epoch 3: put"),
    ("metrics.csv", b"elcn,0,2,3,", b"elcn,0,2,3,\xff", "elcn-seed0-t2 epoch 3: put"),
    ("metrics.csv", b"fcn,1,,1,", b"fcn,1,,1," + b"9" * 10**6, "fcn-seed1 epoch 1: put"),
    ("layers.csv", b"elcn,1,4,5,conv2", b"elcn,1,4,5,conv9", "elcn-seed1-t4 epoch 5: "),
]


def test_damaged_lines_are_told_one_by_one_and_come_back_together(large, tmp_path):
    run_dir = shutil.copytree(large, tmp_path / "run")
    for name, there, damaged, told in DAMAGED_LINES:
        (run_dir / name).write_bytes((large / name).read_bytes().replace(there, damaged))
        _refused(run_dir, told)
        shutil.copy(large / name, run_dir)
    for name, there, damaged, _ in DAMAGED_LINES:
        (run_dir / name).write_bytes((run_dir / name).read_bytes().replace(there, damaged))
    training.run_relax(LARGE, run_dir, quiet=True, repair=True)
    assert same(run_dir, large)


@pytest.mark.parametrize(("name", "extra"), [("metrics.csv", b"cnn,0,,7"), ("layers.csv", b"\xff\n")])
def test_a_line_too_many_is_told_and_goes(large, tmp_path, name, extra):
    run_dir = tmp_path / "run"
    shutil.copytree(large, run_dir)
    (run_dir / name).write_bytes((run_dir / name).read_bytes() + extra)
    with pytest.raises(ValueError, match=rf"{name} .*; no row is missing, and --repair .* removes what is none$"):
        training.run_relax(LARGE, run_dir, quiet=True)
    training.run_relax(LARGE, run_dir, quiet=True, repair=True)
    assert same(run_dir, large)


def test_a_finished_run_has_nothing_to_do(tmp_path, capsys, monkeypatch):
    run_dir = tmp_path / "run"
    command = [
        "relax", "--preset", "digits", "--seeds", "1", "--arms", "cnn", "--epochs", "1", "--train-limit", "20",
        "--test-limit", "20", "--threads", "1", "--run-dir", str(run_dir),
    ]  # fmt: skip
    pages = []

    def write_report(folder, task):
        pages.append(folder)
        (folder / "report.html").write_text("page")
        return folder / "report.html"

    monkeypatch.setattr("efcn_sparse.analysis.write_report", write_report)
    assert main(command) == 0
    assert "nothing to do" not in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    monkeypatch.setattr("efcn_sparse.training.run.source.load_data", lambda *_, **__: pytest.fail("data were loaded"))
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "nothing to do: all of its 1 training runs are finished" in told
    assert f"report: {run_dir / 'report.html'}" in told
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert pages == [run_dir]
