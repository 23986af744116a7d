"""Paths and curvature between the nets that a run has kept: numbers, going on, refusals, figures."""

import csv
import json
import shutil

import pytest
from torch import nn

from efcn_sparse import training
from efcn_sparse.analysis.landscape import FILE, LandscapeSettings, measure_landscape, read_landscape
from efcn_sparse.analysis.landscape_tables import tables
from efcn_sparse.cli.main import main

SETTINGS = LandscapeSettings(points=3, images=60, curvature_images=8, vectors=2)
PARTS = ("tied", "untied", "off_local")


@pytest.fixture(scope="module")
def config():
    return training.RelaxConfig.from_preset(
        "digits", seeds=(0,), arms=("cnn", "elcn", "efcn-grown1.5"), cnn_epochs=1, relax_epochs=1, relax_times=(1,),
        train_limit=60, test_limit=60, batch_size=20, growth_every=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory, config):
    return training.run_relax(config, tmp_path_factory.mktemp("runs") / "bare", quiet=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, bare):
    """A run that was measured in two calls, of which the first was interrupted, and the lines that they told."""
    run, told = tmp_path_factory.mktemp("runs") / "measured", []
    shutil.copytree(bare, run)

    def interrupt(line):
        told.append(line)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_landscape(run, SETTINGS, tell=interrupt)
    before = read_landscape(run)
    measure_landscape(run, tell=told.append)
    assert read_landscape(run)[:4] == before
    return run, told


def test_each_thing_is_measured_once(measured):
    run, told = measured
    assert len(told) == len(read_landscape(run)) == 2 * 4 + 1  # arms, ways and moments, and the control
    assert told[4].startswith("5/9 ")
    again = []
    measure_landscape(run, SETTINGS, tell=again.append)
    assert again == []


def test_a_path_from_a_cnn_that_has_gone_on_is_measured_anew(measured, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(measured[0], run)
    before = (run / FILE).read_text()
    content = json.loads(before)
    (path,) = (one for one in content["found"] if (one["arm"], one["what"]) == ("elcn", "cnn"))
    path["epochs"][0], path["numbers"]["train_loss"][0] = 1, 7.0
    (run / FILE).write_text(json.dumps(content))
    told = []
    measure_landscape(run, tell=told.append)
    assert [line.split(":")[0] for line in told] == ["2/9 elcn-seed0-t1 cnn linear"]
    assert json.loads((run / FILE).read_text()) == json.loads(before)


def test_the_ends_of_a_path_are_evaluated_as_in_the_run(measured):
    run, _ = measured
    with (run / "metrics.csv").open() as file:
        rows = {(row["arm"], row["relax_epoch"], int(row["epoch"])): row for row in csv.DictReader(file)}
    paths = [one for one in read_landscape(run) if one.item.kind == "linear"]
    assert len(paths) == 5
    for one in paths:
        item, (first, last) = one.item, one.item.epochs
        ends = (
            rows["cnn", "", first],
            rows[str(item.arm), "" if item.what == "control" else str(item.relax_epoch), last],
        )
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert [one.numbers[name][0], one.numbers[name][-1]] == pytest.approx([float(row[name]) for row in ends])
    assert {one.item.what: one.item.epochs for one in paths} == {"left": (1, 2), "cnn": (2, 2), "control": (1, 2)}


def test_curvature_is_that_of_the_support_of_both_moments(measured):
    run, _ = measured
    with (run / "metrics.csv").open() as file:
        stored = {(row["arm"], row["relax_epoch"], row["epoch"]): row["stored"] for row in csv.DictReader(file)}
    cnn = training.load_arm(run, "cnn", 0, None, 1)
    kernel_entries = sum(one.weight.numel() for one in cnn.modules() if isinstance(one, nn.Conv2d))
    curved = {(str(one.item.arm), one.item.relax_epoch, one.item.what): one.numbers
              for one in read_landscape(run) if one.item.kind == "curvature"}  # fmt: skip
    assert "off_local" not in curved["elcn", 1, "start"]
    for arm in ("elcn", "efcn-grown1.5"):
        start, end = curved[arm, 1, "start"], curved[arm, 1, "end"]
        sizes = [sum(at[part]["dimension"] for part in PARTS if part in at) for at in (start, end)]
        assert sizes[0] == sizes[1] >= int(stored[arm, "1", "2"])
        assert start["tied"]["dimension"] == kernel_entries
        for numbers in (*start.values(), *end.values()):
            assert abs(numbers["along"]) <= abs(numbers["top"]) * 1.01
    assert curved["elcn", 1, "start"]["tied"]["top"] == pytest.approx(
        curved["efcn-grown1.5", 1, "start"]["tied"]["top"], rel=1e-2
    )  # the same net


def test_the_command_goes_on_and_prints_tables(measured, capsys):
    run, _ = measured
    assert main(["landscape", str(run), "--points", "3", "--images", "60", "--curvature-images", "8", "--vectors",
                 "2"]) == 0  # fmt: skip
    assert capsys.readouterr().out == f"{tables(read_landscape(run))}\n{run / FILE}\n"
    assert main(["landscape", str(run), "--curvature-images", "9"]) == 2
    told = f"settings must be those of {run / FILE} (or remove it), --curvature-images 8, got 9"
    assert capsys.readouterr().err == f"efcn-sparse: error: {told}\n"
    assert main(["landscape", str(run), "--points", "3"]) == 0  # the other settings are those of the file


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: measure_landscape(run, LandscapeSettings(points=1)), "points must be at least 2, got 1"),
        (lambda run: measure_landscape(run, LandscapeSettings(points=4)),
         "settings must be those of .*json .or remove it., points 3, images 60, .*, got 4, "),
        (lambda run: measure_landscape(run, kinds=["string"]), "kinds must be among linear, curvilinear, output"),
        (lambda run: (run / FILE).write_text('{"settings": {}}') and measure_landscape(run), "must hold what was meas"),
        (lambda run: (shutil.rmtree(run / "checkpoints"), (run / FILE).unlink(), measure_landscape(run)),
         "run_dir must hold an embedded net's start and end"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(measured, tmp_path, call, message):
    run = tmp_path / "run"
    shutil.copytree(measured[0], run)
    with pytest.raises(ValueError, match=message):
        call(run)
