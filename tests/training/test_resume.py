"""A killed run that is started again, or one with fused updates, ends with the numbers of a whole one, bit for bit."""

import csv
import dataclasses
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
from tests.training.runs import DILATED, GROWN, KINDS, LOWRANK, assert_same, checkpoints, cut_short, numbers, slices_of

SCRIPT = """
import os, signal, sys
import efcn_sparse.training as training
from efcn_sparse.training.run.metrics import MetricsFile
append = MetricsFile.append

def append_and_die(self, rows):
    append(self, rows)
    if [rows[0]["arm"], str(rows[0]["epoch"])] == sys.argv[3:]:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsFile.append = append_and_die
config = training.RelaxConfig.from_json(open(sys.argv[1]).read())
print("ready", flush=True)
training.run_relax(config, sys.argv[2], quiet=True, checkpoint_seconds=0.0)
"""


def command(kind, tmp_path, *last_row):
    (tmp_path / "config.json").write_text(KINDS[kind].to_json())
    return [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json"), str(tmp_path / "run"), *last_row]


@pytest.fixture
def uninterrupted(whole_run):
    return whole_run("plain")


def test_a_process_killed_at_random_moments_loses_nothing(uninterrupted, tmp_path):
    chance, killed = random.Random(20190611), 0
    for _ in range(2):
        with subprocess.Popen(command("plain", tmp_path), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.05, 0.4))
            process.kill()
            killed += process.wait() == -signal.SIGKILL
    assert killed  # else the run is too short for this test
    training.run_relax(KINDS["plain"], tmp_path / "run", quiet=True)
    assert_same(tmp_path / "run", uninterrupted)


def test_a_process_killed_at_a_fused_epoch_loses_nothing(whole_run, tmp_path):
    assert subprocess.run(command("fused", tmp_path, DILATED, "3"), check=False).returncode == -signal.SIGKILL
    run_dir, whole = tmp_path / "run", whole_run("fused")
    assert checkpoints(run_dir).keys() < checkpoints(whole).keys() | {f"{DILATED}-seed0-t1-e2.safetensors"}
    with slices_of("fused"):
        training.run_relax(KINDS["fused"], run_dir, quiet=True)
    assert_same(run_dir, whole)


OFTEN, NEVER = 0.0, 1e9  # seconds between checkpoints that only an interruption needs


@pytest.mark.parametrize(
    ("kind", "arm", "counts", "seconds"),
    [
        # every stage, at its embedding, midway and before its end: in rows past the last checkpoint or without any
        *(("plain", None, [count], NEVER if count % 4 == 1 else OFTEN) for count in range(1, 12, 2)),
        ("plain", None, [12], NEVER), ("plain", None, [12], OFTEN),  # all that there are
        *(("fused", None, [count], OFTEN) for count in (6, 8, 10)),  # the CNN's four come first
        *(("grown", GROWN, [count], NEVER if count % 2 == 0 else OFTEN) for count in (2, 3, 4, 5)),
        ("low-rank", LOWRANK, [2], OFTEN),
        ("selective", DILATED, [1, 2, 2], OFTEN),  # each time one epoch later
        *(("diverging", None, [count], NEVER) for count in (2, 4, 6, 12)),
    ],
    ids=str,
)  # fmt: skip
def test_an_interruption_after_any_reading_loses_nothing(whole_run, tmp_path, kind, arm, counts, seconds):
    run_dir = tmp_path / "run"
    with slices_of(kind):
        for count in counts:
            cut_short(count, KINDS[kind], run_dir, arm=arm, checkpoint_seconds=seconds)
        if kind == "plain":
            with (run_dir / "metrics.csv").open("a") as file:
                file.write("elcn,0,1,4,0.0")  # torn
        training.run_relax(KINDS[kind], run_dir, quiet=True)
    assert_same(run_dir, whole_run(kind))


@pytest.mark.parametrize("kind", ["fused", "grown", "low-rank"])
def test_fused_or_not_a_run_is_the_same(whole_run, tmp_path, kind):
    with slices_of(kind):
        other = dataclasses.replace(KINDS[kind], fused=not KINDS[kind].fused)
        assert_same(training.run_relax(other, tmp_path / "run", quiet=True), whole_run(kind))


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.is_file()}
    training.run_relax(KINDS["plain"], uninterrupted, quiet=True)
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


def test_a_run_of_an_older_version_is_gone_on_with(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    for name in ("metrics.csv", "layers.csv"):
        as_an_older_version_would_have(run_dir / name)
    (run_dir / "checkpoints" / "elcn-seed0-t1-e4.safetensors").unlink()
    assert (run_dir / "metrics.csv").read_text().startswith(",".join(OLDER) + "\n")
    training.run_relax(KINDS["plain"], run_dir, quiet=True)
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
