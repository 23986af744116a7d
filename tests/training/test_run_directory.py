"""A run directory belongs to one configuration and to one process at a time."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

import efcn_sparse.training as training
from efcn_sparse.training.run.run_directory import held, note_environment

HOLD = """
import sys, time
from pathlib import Path
from efcn_sparse.training import RelaxConfig
from efcn_sparse.training.run.run_directory import held
with held(Path(sys.argv[1]), RelaxConfig.from_json(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def config():
    return training.RelaxConfig(preset="digits", arms=("cnn",), cnn_epochs=0, train_limit=20, test_limit=20)


def test_two_processes_into_one_directory_are_refused_and_a_killed_one_does_not_block(config, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(run_dir), config.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=re.escape(f"run_dir {run_dir} is in use by another process")):
            training.run_relax(config, run_dir)
        other.kill()
        other.wait()
    with held(run_dir, config):
        pass


def test_another_configuration_is_refused_with_the_fields_that_differ(config, tmp_path):
    with held(tmp_path, config):
        pass
    other = dataclasses.replace(config, lr=0.05, seeds=(1,))
    with pytest.raises(ValueError, match="another configuration") as caught:
        training.run_relax(other, tmp_path)
    assert str(caught.value) == (
        f"run_dir {tmp_path} holds a run with another configuration: seeds is (0,) there and (1,) here; "
        "lr is 0.1 there and 0.05 here (a run can be given more of these, and keeps what it has)"
    )


def test_a_folder_of_something_else_is_refused_and_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    message = f"run_dir must be empty or a run directory, got {tmp_path} with thesis.tex"
    with pytest.raises(ValueError, match=re.escape(message)):
        training.run_relax(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=re.escape(f"run_dir must be a folder, got the file {tmp_path / 'run'}")):
        training.run_relax(config, tmp_path / "run")


def test_what_a_kill_left_before_the_first_rename_does_not_block(config, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json.tmp").write_text('{"pre')
    (tmp_path / "checkpoints" / "cnn-seed0-e0.safetensors.tmp").write_text("torn")
    with held(tmp_path, config):
        assert not list((tmp_path / "checkpoints").iterdir())
    assert training.RelaxConfig.from_json((tmp_path / "config.json").read_text()) == config


def test_going_on_in_another_environment_is_told(config, tmp_path, caplog):
    with held(tmp_path, config):
        note_environment(tmp_path, config.device)
        noted = json.loads((tmp_path / "environment.json").read_text())
        (tmp_path / "environment.json").write_text(json.dumps({**noted, "torch": "1.0"}))
        assert not caplog.records
        note_environment(tmp_path, config.device)
    assert "torch '1.0' became" in caplog.text


@pytest.mark.parametrize(
    ("text", "told"),
    [(b"[]", "got a list"), (b"[" * 100_000, "got one that is nested too deeply"), (b"\xff", "got text that is none")],
    ids=["list", "deep", "bytes"],
)
def test_an_environment_that_is_none_is_told(config, tmp_path, text, told):
    with held(tmp_path, config):
        (tmp_path / "environment.json").write_bytes(text)
        message = f"{tmp_path / 'environment.json'} must hold a JSON object, {told}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            note_environment(tmp_path, config.device)


@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "layers.csv", ".lock"])
def test_links_in_a_prepared_run_directory_are_refused_and_not_followed(config, tmp_path, name):
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run_dir.mkdir()
    (run_dir / "config.json").write_text(config.to_json())
    elsewhere.mkdir() if name == "checkpoints" else elsewhere.write_text("precious")
    (run_dir / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"^{re.escape(str(run_dir / name))} must be a .*, got a symbolic link$"):
        training.run_relax(config, run_dir, quiet=True)
    assert list(elsewhere.iterdir()) == [] if name == "checkpoints" else elsewhere.read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["environment.json.tmp", "config.json.tmp", "checkpoints/cnn-seed0-e0.safetensors.tmp"]
)
def test_a_link_in_the_place_of_a_new_file_is_replaced_and_not_followed(config, tmp_path, name):
    run_dir, precious = tmp_path / "run", tmp_path / "precious"
    (run_dir / "checkpoints").mkdir(parents=True)
    precious.write_text("precious")
    if name == "environment.json.tmp":
        (run_dir / "config.json").write_text(config.to_json())
    (run_dir / name).symlink_to(precious)
    training.run_relax(config, run_dir, quiet=True)
    assert precious.read_text() == "precious"
    assert not any(path.is_symlink() for path in run_dir.rglob("*"))


def test_a_damaged_configuration_is_told(config, tmp_path):
    (tmp_path / "config.json").write_text('{"preset": "digits", "color": 1}')
    told = "text must hold only fields of RelaxConfig, got color"
    message = f"{tmp_path / 'config.json'} must hold a RelaxConfig, got: {told}"
    with pytest.raises(ValueError, match=re.escape(message)):
        training.run_relax(config, tmp_path)
