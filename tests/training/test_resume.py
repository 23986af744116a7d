"""A killed run that is started again ends with the numbers of an uninterrupted one, bit for bit."""

import csv
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import efcn_sparse.training as training
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint
from efcn_sparse.training.run.metrics import LOCALITY, METRICS, SUPPORT, MetricsFile
from tests.training.runs import assert_same, checkpoints, interrupt_after, numbers

TINY = dict(
    seeds=(0,), arms=("cnn", "elcn", "fcn"), cnn_epochs=2, relax_epochs=3, fcn_epochs=2, relax_times=(1,),
    momentum=0.9, lr=0.02, batch_size=20, train_limit=60, test_limit=40, threads=1,
)  # fmt: skip

SCRIPT = """
import sys
import efcn_sparse.training as training
config = training.RelaxConfig.from_json(open(sys.argv[1]).read())
print("ready", flush=True)
training.run_relax(config, sys.argv[2], quiet=True, checkpoint_seconds=0.0)
"""


@pytest.fixture(scope="module")
def config():
    return training.RelaxConfig.from_preset("digits", **TINY)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    return training.run_relax(config, tmp_path_factory.mktemp("whole") / "run", quiet=True)


def test_a_process_killed_at_random_moments_loses_nothing(config, uninterrupted, tmp_path):
    (tmp_path / "config.json").write_text(config.to_json())
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json"), str(run_dir)]
    chance, killed = random.Random(20190611), 0
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.05, 0.4))
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed  # else the run is too short for this test
    training.run_relax(config, run_dir, quiet=True)
    assert_same(run_dir, uninterrupted)


@pytest.mark.parametrize("fatal", range(0, 15, 2))
def test_an_interruption_after_any_reading_loses_nothing(config, uninterrupted, tmp_path, monkeypatch, fatal):
    """Every stage is cut, at its embedding, midway and before its end, with rows past the last checkpoint."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, fatal + 1)
        try:
            training.run_relax(config, run_dir, quiet=True, checkpoint_seconds=0.0 if fatal % 4 else 1e9)
        except KeyboardInterrupt:
            with (run_dir / "metrics.csv").open("a") as file:
                file.write("elcn,0,1,4,0.0")  # torn
    training.run_relax(config, run_dir, quiet=True)
    assert_same(run_dir, uninterrupted)


def test_a_finished_run_is_left_as_it_is(config, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    training.run_relax(config, uninterrupted, quiet=True)
    after = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    assert after == before


def test_rows_past_the_checkpoint_and_torn_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.csv"
    whole = ",".join(METRICS) + "\ncnn,0,,0,0.1,1.0,0.5,1.0,0.5,,,,,,,,0.1\n"
    path.write_text(
        whole + "cnn,0,,1,0.1,1.0,0.5,1.0,0.5,,,,,,,,0.1\nelcn,0,1,1,0.1,1.0,0.5,1.0,0.5,,,,,,,,0.1\ncnn,0,,2,0."
    )
    MetricsFile(path, METRICS, {"cnn-seed0": 0}).close()
    assert path.read_text() == whole


@pytest.mark.parametrize("older", [False, True], ids=["today's", "version 0.1.0's"])
def test_a_checkpoint_brings_model_and_momentum_back(tmp_path, older):
    import torch

    def fresh():
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, optimizer = fresh()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 3, 4, 4)).square().sum().backward()
        optimizer.step()
    save_checkpoint(tmp_path / "here", model, optimizer)
    if older:
        text = (tmp_path / "here").read_bytes()
        (tmp_path / "here").write_bytes(text.replace(b'"optimizer/', b'"optimiser/'))
    other, other_optimizer = fresh()
    load_checkpoint(tmp_path / "here", other, other_optimizer)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        one, two = optimizer.state[mine]["momentum_buffer"], other_optimizer.state[theirs]["momentum_buffer"]
        assert torch.equal(one, two)
        assert one.stride() == two.stride()


OLDER = METRICS[:13] + METRICS[16:]  # before a row told of the support


def as_an_older_version_would_have(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name not in (*SUPPORT, *LOCALITY)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_a_run_of_an_older_version_is_gone_on_with(config, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    for name in ("metrics.csv", "layers.csv"):
        as_an_older_version_would_have(run_dir / name)
    (run_dir / "checkpoints" / "elcn-seed0-t1-e4.safetensors").unlink()
    assert (run_dir / "metrics.csv").read_text().startswith(",".join(OLDER) + "\n")
    training.run_relax(config, run_dir, quiet=True)
    assert checkpoints(run_dir) == checkpoints(uninterrupted)
    older, newer = numbers(run_dir), numbers(uninterrupted)
    assert [list(row) for row in older] == [list(row) for row in newer]
    gone_on = 0
    for mine, theirs in zip(older, newer, strict=True):
        if mine["leak"]:
            assert mine == theirs
            gone_on += 1
        else:
            assert mine == theirs | dict.fromkeys([name for name in (*SUPPORT, *LOCALITY) if name in theirs], "")
    assert gone_on == 2 * 4  # epochs 3 and 4 come after the checkpoint of epoch 2, in three layers and the whole


def test_columns_of_nobody_are_refused(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(",".join(METRICS[:-2]) + "\n")
    with pytest.raises(ValueError, match=f"{path} must have the columns {','.join(METRICS)}, got arm,"):
        MetricsFile(path, METRICS, {})
