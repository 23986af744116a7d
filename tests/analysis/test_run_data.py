"""What is read from a run directory, whole, torn or damaged."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from efcn_sparse.analysis.run_data import read_run
from efcn_sparse.training.arms import CNN, FULL
from efcn_sparse.training.run.metrics import LAYERS, LOCALITY, METRICS, SUPPORT

METRICS_HEADER, LAYERS_HEADER = ",".join(METRICS), ",".join(LAYERS)


@pytest.fixture
def folder(tmp_path, config):
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "environment.json").write_text(json.dumps({"cores": 2}))
    (tmp_path / "layers.csv").write_text(
        LAYERS_HEADER + "\nefcn-full,0,1,2,conv1,0.5,3.0,0.0,1.5,36,0.25,0.75,0.1,2.5,3.5\n"
    )
    (tmp_path / "metrics.csv").write_text(
        METRICS_HEADER + "\n"
        "cnn,0,,1,0.1,0.5,0.6,0.7,0.8,,,,,,,,1.5\n"
        "cnn,0,,0,0.1,2.5,0.1,2.7,0.1,,,,,,,,\n"
        "efcn-full,0,1,1,0.1,0.5,0.6,0.7,0.8,0.0,4.0,0.0,0.0,36,,,1.0\n"
    )
    return tmp_path


def test_rows_become_traces_in_the_order_of_epochs(folder):
    run = read_run(folder)
    assert run.arms == [CNN, FULL]
    (cnn,) = run.of(CNN)
    np.testing.assert_array_equal(cnn.epochs, [0, 1])
    np.testing.assert_array_equal(cnn.columns["test_accuracy"], [0.1, 0.8])
    assert np.isnan(cnn.columns["delta"]).all()
    assert np.isnan(cnn.columns["seconds"][0])
    assert cnn.final("train_loss") == 0.5
    (layer,) = run.layers_of(FULL, "conv1", 1)
    assert layer.final("off_local") == 1.5
    assert [layer.final(name) for name in (*SUPPORT, *LOCALITY)] == [36, 0.25, 0.75, 0.1, 2.5, 3.5]
    assert run.layer_names(FULL) == ["conv1"]
    assert run.relax_epochs() == [1]
    assert run.embedded_arms == [FULL]
    assert run.environment == {"cores": 2}
    assert run.problems == ()


def test_a_row_that_is_there_twice_counts_once_and_the_later_one_wins(folder):
    with (folder / "metrics.csv").open("a") as file:
        file.write("cnn,0,,1,0.1,0.4,0.6,0.7,0.9,,,,,,,,1.5\n")
    (cnn,) = read_run(folder).of(CNN)
    np.testing.assert_array_equal(cnn.columns["test_accuracy"], [0.1, 0.9])


def test_a_torn_last_line_is_left_out_and_told(folder):
    with (folder / "metrics.csv").open("a") as file:
        file.write("cnn,0,,2,0.1,0.4")
    run = read_run(folder)
    assert run.of(CNN)[0].epochs.tolist() == [0, 1]
    assert run.problems == ("The last line of metrics.csv is incomplete and was left out.",)


def test_missing_files_are_told(folder):
    for name in ("environment.json", "layers.csv", "metrics.csv"):
        (folder / name).unlink()
    assert read_run(folder).problems == (
        "environment.json is missing.",
        "metrics.csv is missing: nothing has been evaluated yet.",
        "layers.csv is missing: nothing has been evaluated yet.",
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "cnn-seed0-e1.safetensors").touch()
    assert read_run(folder).problems[1:] == tuple(
        f"{name} is missing: it was lost, for there are checkpoints; relax with --repair trains their epochs again."
        for name in ("metrics.csv", "layers.csv")
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "metrics.csv holds no evaluations yet."), (METRICS_HEADER + "\n", "metrics.csv holds no evaluations yet.")],
)
def test_a_file_without_rows_is_told(folder, text, told):
    (folder / "metrics.csv").write_text(text)
    run = read_run(folder)
    assert run.traces == ()
    assert run.problems == (told,)


def _refused(folder, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_run(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    _refused(tmp_path, f"run_dir must be a run directory with a config.json, got {tmp_path}")
    _refused(tmp_path / "no", f"run_dir must be a run directory with a config.json, got {tmp_path / 'no'}")


def test_other_columns_are_refused(folder):
    path = folder / "layers.csv"
    path.write_text("arm,seed\ncnn,0\n")
    _refused(folder, f"{path} must have the columns {LAYERS_HEADER}, got arm,seed")


@pytest.mark.parametrize("lacking", [LOCALITY, (*SUPPORT, *LOCALITY)])
def test_files_of_older_runs_lack_what_they_do_not_tell(folder, lacking):
    for name, columns in (("metrics.csv", METRICS), ("layers.csv", LAYERS)):
        with (folder / name).open() as file:
            rows = list(csv.DictReader(file))
        with (folder / name).open("w", newline="") as file:
            older = [column for column in columns if column not in lacking]
            writer = csv.DictWriter(file, older, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    run = read_run(folder)
    (layer,) = run.layers_of(FULL, "conv1", 1)
    assert layer.final("off_local") == 1.5
    assert run.of(FULL, 1)[0].final("seconds") == 1.0
    for trace in (*run.traces, *run.layer_traces):
        assert all(np.isnan(trace.columns[name]).all() for name in lacking if name in trace.columns)
    with (folder / "layers.csv").open("a") as file:
        file.write("elcn,0,1,2,conv1,0.0,3.0,0.0,0.0,1,1,1,1,1,1\n")
    _refused(folder, f"{folder / 'layers.csv'} line 3 must hold {15 - len(lacking)} cells, got 15")


def test_text_in_the_place_of_a_number_is_refused(folder):
    path = folder / "layers.csv"
    path.write_text(LAYERS_HEADER + "\nelcn,0,1,2,conv1,0.0,3.0,0.0,0.0,,,,,,\nelcn,0,1,3,conv1,x,3.0,0.0,0.0,,,,,,\n")
    _refused(folder, f"{path} line 3 must hold a number in the column delta, got 'x'")
    path.write_text(LAYERS_HEADER + "\nelcn,0,1,2,conv1,0.0\n")
    _refused(folder, f"{path} line 2 must hold 15 cells, got 6")


def test_an_environment_that_is_no_json_object_is_refused(folder):
    path = folder / "environment.json"
    path.write_text("[1]")
    _refused(folder, f"{path} must hold a JSON object, got a list")
    path.write_text("{")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} must hold a JSON object, got text that is none: "):
        read_run(folder)
