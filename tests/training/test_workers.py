"""Stages on the workers of any executor: the same numbers, whoever trains them and whoever dies."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import efcn_sparse.training as training
from efcn_sparse.cli.main import main
from efcn_sparse.importing import imported
from efcn_sparse.training.run.workers import Processes
from tests.training.runs import assert_same, rows

EXAMPLE = f"{Path(__file__).resolve().parents[2] / 'examples' / 'own_net.py'}:task"
CONFIG = training.RelaxConfig(
    arms=("cnn", "elcn"), seeds=(0, 1), cnn_epochs=2, relax_times=(0, 2), relax_epochs=1, lr=0.003, batch_size=16,
    train_limit=40, test_limit=20, threads=1,
)  # fmt: skip
DEADLY = """
import dataclasses, multiprocessing, os, signal
from efcn_sparse.importing import imported

own = imported({example!r}, "task")

def crop(x, y, generator):
    if multiprocessing.parent_process() is not None and not os.path.exists({mark!r}):
        open({mark!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return own.augment(x, y, generator)

task = dataclasses.replace(own, augment=crop)
"""


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    return training.run_relax(EXAMPLE, CONFIG, tmp_path_factory.mktemp("runs") / "serial", quiet=True)


@pytest.fixture
def deadly(tmp_path) -> str:
    """The task of the example, which kills the first worker that trains it."""
    (tmp_path / "deadly.py").write_text(DEADLY.format(example=EXAMPLE, mark=str(tmp_path / "mark")))
    return f"{tmp_path / 'deadly.py'}:task"


def same(run_dir, serial):
    assert_same(run_dir, serial)
    assert {path.suffix for path in (run_dir / "stages").iterdir()} == {".log"}


def test_threads_share_one_generator_and_so_take_turns(serial, tmp_path):
    with ThreadPoolExecutor(3) as threads:
        same(training.run_relax(EXAMPLE, CONFIG, tmp_path / "run", quiet=True, executor=threads), serial)


def test_a_worker_that_dies_is_named_and_its_stage_goes_on(serial, deadly, tmp_path, caplog):
    events = []
    with Processes(2) as workers:
        run_dir = training.run_relax(
            deadly, CONFIG, tmp_path / "run", quiet=True, executor=workers, callbacks=[events.append]
        )
    same(run_dir, serial)
    (told,) = [record.getMessage() for record in caplog.records]
    assert (
        told.removesuffix(", which goes on from its last checkpoint")[:-1] == "a worker died while it trained cnn-seed"
    )
    kinds = Counter((event.stage, event.kind) for event in events)
    assert kinds["cnn-seed0", "epoch"] == 4
    assert kinds["elcn-seed1-t2", "epoch"] == 2
    for stage in {event.stage for event in events}:
        mine = [event for event in events if event.stage == stage]
        assert [mine[0].kind, mine[-1].kind] == ["start", "end"]
        assert {event.kind for event in mine[1:-1]} == {"epoch"}
    last = next(event for event in events if (event.stage, event.epoch) == ("elcn-seed0-t2", 3))
    (row,) = [row for row in rows(serial, "metrics") if (row["arm"], row["seed"], row["epoch"]) == ("elcn", "0", "3")]
    assert last.values["test_loss"] == float(row["test_loss"])
    assert (last.arm, last.seed, last.relax_epoch) == ("elcn", 0, 2)
    assert {"train_loss", "test_accuracy", "delta", "lr"} <= last.values.keys()


def test_an_executor_that_takes_no_more_work_is_told_and_the_run_goes_on(serial, deadly, tmp_path):
    run_dir = tmp_path / "run"
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool,
        pytest.raises(
            RuntimeError, match=r"a worker died while it trained .*cnn-seed0.*, and its executor takes no more"
        ),
    ):
        training.run_relax(deadly, CONFIG, run_dir, quiet=True, executor=pool)
    same(training.run_relax(EXAMPLE, CONFIG, run_dir, quiet=True), serial)


class Dead(Executor):
    """Its workers have died while the first call ran, before anybody looked."""

    def __init__(self):
        self.calls = 0

    def submit(self, fn, /, *args, **kwargs):
        self.calls += 1
        if self.calls > 1:
            raise BrokenProcessPool("not usable anymore")
        return Future()


def test_a_death_that_the_next_stage_shows_first_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"a worker died while it trained cnn-seed0, and its executor takes no more"):
        training.run_relax(EXAMPLE, CONFIG, tmp_path / "run", quiet=True, executor=Dead())


def test_workers_have_the_environment_of_the_moment(monkeypatch):
    for number in ("1", "2"):
        monkeypatch.setenv("EFCN_TEST_NUMBER", number)
        with Processes(1) as workers:
            assert workers.submit(os.getenv, "EFCN_TEST_NUMBER").result() == number


def test_an_error_in_a_worker_is_the_callers(tmp_path):
    config = dataclasses.replace(CONFIG, lr=0.003)
    (tmp_path / "broken.py").write_text(
        DEADLY.format(example=EXAMPLE, mark="")
        .replace("os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError('no')")
        .replace("open('', \"w\").close()", "pass")
    )
    with Processes(1) as workers, pytest.raises(ValueError, match="augment raised KeyError: 'no'"):
        training.run_relax(f"{tmp_path / 'broken.py'}:task", config, tmp_path / "run", quiet=True, executor=workers)


LOADED = """
import dataclasses, torch
from efcn_sparse.importing import imported

class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 32
    def __getitem__(self, index):
        return torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(index)), index % 10

task = dataclasses.replace(imported({example!r}, "task"), train=Noise(), augment=None, schedule=None, workers=1)
"""


def test_a_data_set_of_a_file_is_loaded_by_workers_of_a_worker(tmp_path):
    (tmp_path / "mine.py").write_text(LOADED.format(example=EXAMPLE))
    target = f"{tmp_path / 'mine.py'}:task"
    config = dataclasses.replace(CONFIG, arms=("cnn",), seeds=(0,), cnn_epochs=1, relax_times=(0,), relax_epochs=0)
    with Processes(1) as workers:
        training.run_relax(target, config, tmp_path / "run", quiet=True, executor=workers)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["0", "1"]


def test_a_task_that_cannot_be_sent_is_told(tmp_path):
    task = dataclasses.replace(imported(EXAMPLE, "task"), loss=lambda output, y: output.sum())
    with (
        Processes(1) as workers,
        pytest.raises(ValueError, match="task must be what another process can import"),
    ):
        training.run_relax(task, CONFIG, tmp_path / "run", quiet=True, executor=workers)


@pytest.mark.slow
def test_the_workers_of_a_dask_scheduler(serial, tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    command = [
        "relax", EXAMPLE, "--seeds", "2", "--arms", "cnn", "elcn", "--epochs", "2", "--relax-times", "0", "2",
        "--relax-epochs", "1", "--lr", "0.003", "--batch-size", "16", "--train-limit", "40", "--test-limit", "20",
        "--threads", "1", "--run-dir", str(tmp_path / "run"), "--no-report", "--tensorboard",
    ]  # fmt: skip
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert main([*command, "--dask", cluster.scheduler_address]) == 0, capsys.readouterr().err
    same(tmp_path / "run", serial)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard" / "elcn-seed0-t2")).Reload()
    assert [one.step for one in found.Scalars("test_accuracy")] == [2, 3]
    assert main([*command, "--workers", "0"]) == 2
