"""A task of one's own goes through the protocol exactly as a preset does, or is refused by the name of its field."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import efcn_sparse.training as training
from efcn_sparse.analysis import write_report
from efcn_sparse.analysis.landscape import LandscapeSettings, measure_landscape, read_landscape
from efcn_sparse.cli.main import main
from efcn_sparse.importing import imported
from tests.training.runs import assert_same, cut_short, numbers, rows

EXAMPLE = f"{Path(__file__).resolve().parents[2] / 'examples' / 'own_net.py'}:task"
SETTINGS = dict(seeds=(0,), cnn_epochs=2, relax_times=(1,), relax_epochs=2, fcn_epochs=1, lr=0.003, batch_size=16,
                train_limit=50, test_limit=30, threads=1)  # fmt: skip
CONFIG = training.RelaxConfig(arms=("cnn", "elcn"), **SETTINGS)


@pytest.fixture(scope="module")
def own() -> training.Task:
    return imported(EXAMPLE, "task")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return training.run_relax(EXAMPLE, CONFIG, tmp_path_factory.mktemp("runs") / "whole", quiet=True)


def test_the_arguments_of_a_task_count(own, whole):
    rows = [row for row in numbers(whole) if row["arm"] == "cnn" and "lr" in row]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.003, 0.00225, 0.00075, 0.0], abs=1e-9)  # a cosine
    plain = dataclasses.replace(own, augment=None, schedule=None)
    assert "train of seed 0" in (whole / "task.json").read_text()
    model = training.load_arm(whole, "elcn", 0, 1, 3, task=own)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    with pytest.raises(ValueError, match="task must be given for a run of a task of one's own, got none"):
        training.load_arm(whole, "elcn", 0, 1, 3)
    assert plain.convolutions == own.convolutions


@pytest.mark.parametrize("fatal", [3, 7])
def test_an_interrupted_run_goes_on_bit_by_bit(whole, tmp_path, fatal):
    run_dir = tmp_path / "run"
    cut_short(fatal, EXAMPLE, CONFIG, run_dir)
    training.run_relax(EXAMPLE, CONFIG, run_dir, quiet=True)
    assert_same(run_dir, whole)


def test_a_regression_has_metrics_of_its_own_in_rows_resume_and_report(tmp_path):
    x = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    y = x[:, 0, 2, 2] + 0.5 * x[:, 0, 3, 4]

    def build():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))

    def metrics(output, y):
        ranked = (
            (output[:, None] - y).abs().topk(min(5, len(y)), largest=False).indices
        )  # is its own among the nearest five?
        error = (output - y).abs()
        return {
            "accuracy": error < 0.5,
            "mae": error.mean(),
            "top5": (ranked == torch.arange(len(y))[:, None]).any(1),
        }

    task = training.Task(build, (x[:25], y[:25]), (x[25:], y[25:]), loss=nn.functional.mse_loss, metrics=metrics)
    whole = training.run_relax(task, CONFIG, tmp_path / "whole", quiet=True)
    cut_short(4, task, CONFIG, tmp_path / "cut")
    training.run_relax(task, CONFIG, tmp_path / "cut", quiet=True)
    assert numbers(tmp_path / "cut") == numbers(whole)
    last = [row for row in numbers(whole) if row["arm"] == "elcn" and "lr" in row][-1]
    with torch.no_grad():
        output = training.load_arm(whole, "elcn", 0, 1, 3, task=task)(x[25:])
    wanted = {name: float(value.double().mean()) for name, value in metrics(output, y[25:]).items()}
    for name, value in {"loss": float(nn.functional.mse_loss(output, y[25:])), **wanted}.items():
        assert float(last[f"test_{name}"]) == pytest.approx(value, rel=1e-5)
    assert write_report(whole, task).stat().st_size > 10_000


class Odd(torch.optim.Optimizer):
    """Keeps a scalar of each parameter, a setting of its group, and a tensor of another shape."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, dict(lr=lr, factor=1.0))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["factor"] *= 0.7
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["mean"] = 0.5 * state.get("mean", torch.zeros(1, 1, 1)) + parameter.grad.mean()
                parameter.sub_(
                    parameter.grad + state["mean"].sum(), alpha=group["lr"] * group["factor"] / state["count"]
                )


def adamw_by_lambda(parameters, lr):
    return torch.optim.AdamW(parameters, lr)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (Odd, lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))),
        (torch.optim.Adafactor, None),
        (
            adamw_by_lambda,
            lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps + 1),
        ),
    ],
    ids=["state of any kind", "state of other shapes", "momentum that is scheduled"],
)
def test_any_optimizer_and_schedule_is_resumed(own, tmp_path, caplog, optimizer, schedule):
    task = dataclasses.replace(own, optimizer=optimizer, schedule=schedule)
    config = dataclasses.replace(CONFIG, cnn_epochs=1, relax_times=(0,), relax_epochs=2)
    run = functools.partial(training.run_relax, task, config, quiet=True, checkpoint_seconds=0.0)
    expected = run(tmp_path / "whole")
    cut_short(3, task, config, tmp_path / "run", arm="elcn")
    assert_same(run(tmp_path / "run"), expected)
    assert not caplog.records


class FromGlobalGenerators(torch.utils.data.Dataset):
    """Draws as data sets do: from the generators of torch, NumPy and Python."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        noise = torch.randn(1, 8, 8) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return noise, index % 10


class OfItsOwn(FromGlobalGenerators):
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __getitem__(self, index):
        return torch.from_numpy(self.generator.random((1, 8, 8), dtype=np.float32)), index % 10


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 10))


def test_what_a_data_set_draws_is_the_same_for_all_that_is_measured(tmp_path):
    """One net has one loss, wherever it is an end of a path."""
    task = training.Task(_small, FromGlobalGenerators(), FromGlobalGenerators())
    run = training.run_relax(task, CONFIG, tmp_path / "run", quiet=True)
    shutil.copytree(run, tmp_path / "again")
    settings = LandscapeSettings(points=2, images=20, curvature_images=8, vectors=2)
    torch.manual_seed(3)  # nor does it depend on what was drawn before
    measure_landscape(run, settings, task=task)
    found = {one.item.key: one.numbers for one in read_landscape(run)}
    ends = [found[f"elcn-seed0-t1 {what} linear"] for what in ("left", "cnn")]
    for loss in ("train_loss", "test_loss"):
        assert ends[0][loss][-1] == pytest.approx(ends[1][loss][-1], rel=1e-5)
    measure_landscape(tmp_path / "again", settings, task=task)
    assert {one.item.key: one.numbers for one in read_landscape(tmp_path / "again")} == found


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_data_set_draws_is_resumed(own, tmp_path, caplog, workers):
    task = dataclasses.replace(own, train=FromGlobalGenerators(), workers=workers)
    config = dataclasses.replace(CONFIG, arms=("cnn",), cnn_epochs=1, relax_epochs=1)
    expected = training.run_relax(task, config, tmp_path / "whole", quiet=True)
    cut_short(2, task, config, tmp_path / "run")
    assert [row["epoch"] for row in rows(tmp_path / "run" / "stages", "cnn-seed0.metrics")] == ["0", "1"]  # of 0 to 2
    assert numbers(training.run_relax(task, config, tmp_path / "run", quiet=True)) == numbers(expected)
    assert not caplog.records


def test_what_cannot_be_resumed_exactly_is_told(own, tmp_path, caplog):
    counter = iter(range(1000))

    def build():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10)).requires_grad_(True)

    def loss(output, y):
        return nn.functional.cross_entropy(output, y) * (1 + next(counter))

    task = training.Task(build, OfItsOwn(), own.test, loss=loss, augment=lambda x, y, generator: (x.roll(1), y))
    training.run_relax(task, dataclasses.replace(CONFIG, arms=("cnn",)), tmp_path / "run", quiet=True)
    told = [
        record.getMessage().removeprefix("a run that is killed may not go on bit by bit: ") for record in caplog.records
    ]
    assert [text.split()[0] for text in told] == ["train", "a"]


OTHER = dataclasses.replace(imported(EXAMPLE, "task"), optimizer=None)
X, Y = torch.randn(40, 1, 8, 8), torch.arange(40) % 10


def refused(own, tmp_path, changes, config=CONFIG):
    task = dataclasses.replace(own, **{"train": (X, Y), "test": (X, Y), **changes})
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # what it says is compared
        training.run_relax(task, config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def wrong(*_):
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(build=wrong), "build raised RuntimeError: no luck"),
        (dict(build=lambda: 3), "build must give a torch.nn.Module, got int"),
        (dict(build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), "build must make a CNN that can be"),
        (dict(train=wrong), "train raised RuntimeError: no luck"),
        (dict(train=iter([])), "train must be a pair of tensors or a map-style data set (with __len_"),
        (dict(test=(X, Y[:3])), "test must be tensors of one length, got [40, 1, 8, 8] and [3]"),
        (dict(train=[(X[0], 1, 2)] * 5), "train must give batches of two tensors x, y of 1 examples each, got"),
        (dict(train=(X, Y + 5)), "loss raised IndexError: Target"),
        (dict(loss=wrong), "loss raised RuntimeError: no luck"),
        (dict(loss=lambda output, y: output), "loss must give a scalar tensor, got [2, 10]"),
        (dict(metrics=lambda output, y: {"right": 1.0}), "metrics raised ValueError: it must give accuracy"),
        (dict(optimizer=lambda parameters, lr: 3), "optimizer must give a torch.optim.Optimizer, got int"),
        (dict(optimizer=torch.optim.LBFGS), "optimizer raised TypeError: "),
        (dict(schedule=lambda optimizer, steps: None), "schedule raised TypeError: it must give a torch.opt"),
        (dict(schedule=lambda one, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(one)), "schedule raised"),
        (dict(augment=wrong), "augment raised RuntimeError: no luck"),
        (dict(augment=lambda x, y, generator: x), "augment must give the tensors x and y of a batch, got Tensor"),
        (dict(augment=lambda x, y, generator: (x[:1], y)), "augment must give x and y of one length, got 1 and 16"),
        (dict(collate=wrong, train=[(X[0], 1)] * 20), "train raised RuntimeError: no luck"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_field_before_anything_is_written(own, tmp_path, changes, told):
    assert refused(own, tmp_path, changes).startswith(told)


@pytest.mark.parametrize(
    ("settings", "optimizer", "told"),
    [
        (dict(momentum=0.9), torch.optim.AdamW, "momentum must be 0 beside the task's own optimizer, got 0.9"),
        (dict(copies="sum"), torch.optim.AdamW, "relaxing, parts and copies must be left out beside the task's"),
        (dict(carry_momentum=True), torch.optim.Adagrad, "carry_momentum must be left out beside this optimizer: cnn"),
        (dict(carry_momentum=True), None, "carry_momentum must come with momentum, got momentum 0"),
        (dict(fused=True), torch.optim.Adafactor, "fused must be left out beside this optimizer: "),
        (dict(data="here"), None, "data must be left out beside a task, which has its own, got 'here'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_a_task_are_refused(own, tmp_path, settings, optimizer, told):
    config = dataclasses.replace(CONFIG, **settings)
    assert refused(own, tmp_path, dict(optimizer=optimizer), config).startswith(told)


def test_fused_updates_and_carried_moments_go_with_an_optimizer_of_ones_own(own, tmp_path):
    config = dataclasses.replace(CONFIG, carry_momentum=True, arms=("cnn", "elcn", "fcn"))
    one = training.run_relax(own, config, tmp_path / "one", quiet=True)
    other = training.run_relax(own, dataclasses.replace(config, fused=True), tmp_path / "other", quiet=True)
    assert_same(one, other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            dict(train=lambda seed: (X, Y)),
            "task must have the train of seed 0 that run_dir .* was begun with, '.*', got '",
        ),
        (dict(test=lambda seed: (X, Y)), "task must have the test of seed 0 that run_dir "),
        (dict(optimizer=None), "task must have the optimizer that run_dir .* was begun with, 'adamw', got none"),
    ],
)
def test_another_task_is_refused_and_nothing_is_lost(own, whole, tmp_path, changes, told):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    other = dataclasses.replace(own, **changes)
    for config in (dataclasses.replace(CONFIG, seeds=(0, 1)), CONFIG):  # goes on, or is finished
        with pytest.raises(ValueError, match=told):
            training.run_relax(other, config, run_dir, quiet=True)
    with pytest.raises(ValueError, match=told):
        measure_landscape(run_dir, task=other)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_the_commands_call_arguments_as_their_users_do(own, whole, capsys):
    path = str(whole)
    other = f"{__name__}:OTHER"
    for command, told in (
        (["landscape", path], "--task must be given for a run of a task of one's own, got none"),
        (
            ["landscape", path, "--task", other],
            f"--task must have the optimizer that RUN_DIR {path} was begun with, 'adamw', got none",
        ),
        (["landscape", path, "--task", EXAMPLE, "--points", "1"], "--points must be at least 2, got 1"),
        (["landscape", path, "--curvature-images", "0"], "--curvature-images must be at least 1, got 0"),
        (["landscape", "/nowhere"], "RUN_DIR must be a run directory with a config.json, got /nowhere"),
        (["report", "/nowhere"], "RUN_DIR must be a run directory with a config.json, got /nowhere"),
        (["report", path, "--task", "own"], "--task must be package.module:name or file.py:name, got 'own'"),
        (
            ["relax", EXAMPLE, "--run-dir", "/proc/run"],
            "--run-dir must be a folder that can be made, got /proc/run: No such file or directory",
        ),
    ):
        assert main(command) == 2
        assert capsys.readouterr().err == f"efcn-sparse: error: {told}\n"


def test_a_schedule_cannot_be_lengthened(own, whole):
    longer = dataclasses.replace(CONFIG, cnn_epochs=3, relax_times=(1, 3))
    with pytest.raises(ValueError, match="relax_times must not lengthen cnn-seed0 where a schedule goes by its steps"):
        training.run_relax(own, longer, whole, quiet=True)


def test_the_command_takes_a_file(tmp_path, whole, capsys):
    command = [
        "relax", EXAMPLE, "--seeds", "1", "--arms", "cnn", "elcn", "--epochs", "2", "--relax-times", "1",
        "--relax-epochs", "2", "--fcn-epochs", "1", "--lr", "0.003", "--batch-size", "16", "--train-limit", "50",
        "--test-limit", "30", "--threads", "1", "--run-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(command) == 0, capsys.readouterr().err
    assert numbers(tmp_path / "run") == numbers(whole)
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to do: " in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["relax"]) == main(["relax", "nowhere.py:task"]) == main(["relax", f"{EXAMPLE[:-5]}:build"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "efcn-sparse: error: TASK or --preset must be given, and not both"
    assert "TASK must name something that can be imported, got 'nowhere.py:task': there is no file" in told[1]
    assert "own_net.py:build', a function" in told[2]


SCRIPT = """
import sys
import efcn_sparse.training as training
from efcn_sparse.training.run.workers import Processes
config = training.RelaxConfig.from_json(open(sys.argv[1]).read())
with Processes(2) as workers:
    training.run_relax(sys.argv[3], config, sys.argv[2], quiet=True, checkpoint_seconds=0.0, executor=workers)
"""


def is_held(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_killed_with_two_workers_at_work_it_goes_on(whole, tmp_path):
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json"), str(run_dir), EXAMPLE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(run_dir.glob("stages/elcn*.log")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    logs = sorted(run_dir.glob("stages/*.log"))
    assert [log.stem for log in logs] == ["cnn-seed0", "elcn-seed0-t1"]
    while any(map(is_held, logs)):  # the workers take a moment to end
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert_same(training.run_relax(EXAMPLE, CONFIG, run_dir, quiet=True), whole)


def test_a_stage_that_another_process_still_trains_is_refused_and_nothing_is_changed(whole, tmp_path):
    run_dir = tmp_path / "run"
    cut_short(3, EXAMPLE, CONFIG, run_dir)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    told = f"cnn-seed0 in run_dir {run_dir} is being trained by another process"
    with (run_dir / "stages" / "cnn-seed0.log").open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as a worker does that has outlived its parent
        with pytest.raises(BlockingIOError, match=f"^{re.escape(told)}$"):
            training.run_relax(EXAMPLE, CONFIG, run_dir, quiet=True)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert_same(training.run_relax(EXAMPLE, CONFIG, run_dir, quiet=True), whole)
