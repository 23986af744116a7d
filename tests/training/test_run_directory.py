"""A run directory belongs to one configuration and to one process at a time."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

import efcn_sparse.training as training
from efcn_sparse.training.run_directory import RunDirectory

HOLD = """
import sys, time
from efcn_sparse.training import RelaxConfig
from efcn_sparse.training.run_directory import RunDirectory
with RunDirectory(sys.argv[1], RelaxConfig.from_json(sys.argv[2])):
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
    with RunDirectory(run_dir, config):
        pass


def test_another_configuration_is_refused_with_the_fields_that_differ(config, tmp_path):
    with RunDirectory(tmp_path, config):
        pass
    other = dataclasses.replace(config, lr=0.05, seeds=(0, 1))
    with pytest.raises(ValueError, match="another configuration") as caught:
        training.run_relax(other, tmp_path)
    assert str(caught.value) == (
        f"run_dir {tmp_path} holds a run with another configuration: seeds is (0,) there and (0, 1) here; "
        "lr is 0.1 there and 0.05 here"
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
    with RunDirectory(tmp_path, config) as run:
        assert not list(run.checkpoints.iterdir())
    assert training.RelaxConfig.from_json((tmp_path / "config.json").read_text()) == config


def test_going_on_in_another_environment_is_told(config, tmp_path, caplog):
    with RunDirectory(tmp_path, config) as run:
        run.note_environment()
        noted = json.loads((tmp_path / "environment.json").read_text())
        (tmp_path / "environment.json").write_text(json.dumps({**noted, "torch": "1.0"}))
        assert not caplog.records
        run.note_environment()
    assert "torch '1.0' became" in caplog.text


def test_a_damaged_configuration_is_told(config, tmp_path):
    (tmp_path / "config.json").write_text('{"preset": "digits", "color": 1}')
    told = "text must hold only fields of RelaxConfig, got color"
    message = f"{tmp_path / 'config.json'} must hold a RelaxConfig, got: {told}"
    with pytest.raises(ValueError, match=re.escape(message)):
        training.run_relax(config, tmp_path)
