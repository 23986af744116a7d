"""What a run frees, part by part: parsed, kept with the run; an eLCN with nothing freed repeats the CNN's epochs."""

import json
import re

import pytest
import torch

import efcn_sparse.training as training
from efcn_sparse.cli.main import main
from efcn_sparse.training import Part, SelectiveSGD
from efcn_sparse.training.arms import CNN, CONTROL, ELCN, FCN
from efcn_sparse.training.optim.relaxing import PartEntry, parts_of_layers
from efcn_sparse.training.optim.shares import Parts
from efcn_sparse.training.run.nets import embed_as
from efcn_sparse.training.run.optimizer import optimizer_of
from tests.training.runs import DIGITS, rows

FROZEN = Part(rate=0.0)
TINY = dict(
    seeds=(0,), arms=("cnn", "elcn"), cnn_epochs=2, relax_epochs=2, relax_times=(0, 2), lr=0.05,
    batch_size=20, train_limit=60, test_limit=40, threads=1,
)  # fmt: skip


def tiny(**changes):
    return training.RelaxConfig.from_preset("digits", **{**TINY, **changes})


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tied", "each setting must be one of rate, weight-decay, l1, beta, got ''"),
        ("all:rate=1", "what to set must be one of tied, untied, off-local, with LAYER/ before it or nothing"),
        ("/tied:rate=1", "what to set must be one of tied, untied, off-local, with LAYER/ before it or nothing"),
        ("tied:speed=1", "each setting must be one of rate, weight-decay, l1, beta, got 'speed'"),
        ("tied:rate=1,rate=2", "each setting must be given once, got 'rate' again"),
        ("tied:rate=fast", "rate must be a number, got 'fast'"),
        ("tied:rate", "rate must be a number, got ''"),
        ("off-local:l1=-1", "l1 must be a finite number of at least 0, got '-1'"),
        ("off-local:l1=inf", "l1 must be a finite number of at least 0, got 'inf'"),
    ],
)
def test_a_wrong_text_is_told(text, told):
    form = "each of parts must be [LAYER/]PART:SETTING=NUMBER,... such as 'off-local:rate=0.5', got"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{form} {text!r}: {told}')}$"):
        PartEntry.parse(text)
    with pytest.raises(ValueError, match=r"^each of parts must be a string such as 'off-local:rate=0.5', got 3$"):
        PartEntry.parse(3)


def test_one_meaning_has_one_text():
    one = tiny(parts=("off_local:rate=.50,weight_decay=1", "*/tied:l1=1e-5"))
    other = tiny(parts=["off-local:rate=5e-1,weight-decay=1.0", "tied:l1=0.00001"])
    assert one == other
    assert one.parts == ("off-local:rate=0.5,weight-decay=1", "tied:l1=1e-05")


def test_later_entries_count_setting_by_setting():
    made = parts_of_layers(
        ["a.0", "a.1", "b"], "sharing",
        ["untied:rate=0.5,weight-decay=0", "a.*/off-local:l1=0.1,rate=2", "a.1/off-local:beta=50,rate=1"], 0.01,
    )  # fmt: skip
    untied, tied = Part(0.5, 0.0), Part(1.0, 0.01)
    assert made == {
        "a.0": Parts(tied, untied, Part(2.0, 0.01, 0.1)),
        "a.1": Parts(tied, untied, Part(1.0, 0.01, 0.1, 50.0)),
        "b": Parts(tied, untied, Part(0.0, 0.01)),
    }


@pytest.mark.parametrize(
    ("relaxing", "free"),
    [("both", (1, 1, 1)), ("sharing", (1, 1, 0)), ("locality", (1, 0, 1)), ("none", (1, 0, 0))],
)
def test_the_names_of_relaxing(relaxing, free):
    (parts,) = parts_of_layers(["a"], relaxing, [], 0.0).values()
    assert (parts.tied.rate, parts.untied.rate, parts.off_local.rate) == free


def test_embedded_arms_get_the_selective_optimizer_and_no_others():
    config = tiny(relaxing="locality", parts=("conv[2-9]/tied:rate=0",), copies="sum", momentum=0.5, weight_decay=0.1)
    cnn = DIGITS.fresh(0)
    made = optimizer_of(config, DIGITS, ELCN, 0.3, embed_as(ELCN, cnn, DIGITS))
    assert isinstance(made, SelectiveSGD)
    assert made.copies == "sum"
    assert made.defaults == dict(lr=0.3, momentum=0.5, weight_decay=0.1)
    assert made.parts["conv1"] == Parts(Part(1.0, 0.1), Part(0.0, 0.1), Part(1.0, 0.1))
    assert made.parts["conv3"] == Parts(Part(0.0, 0.1), Part(0.0, 0.1), Part(1.0, 0.1))
    for arm in (CNN, FCN, CONTROL):
        assert type(optimizer_of(config, DIGITS, arm, 0.3, cnn)) is torch.optim.SGD
    assert type(optimizer_of(tiny(), DIGITS, ELCN, 0.3, embed_as(ELCN, cnn, DIGITS))) is torch.optim.SGD


OLD = {
    "preset": "digits", "seeds": [0], "arms": ["cnn", "elcn"], "cnn_epochs": 2, "relax_epochs": 2, "fcn_epochs": 30,
    "snapshots": 5, "relax_times": [0, 2], "lr": 0.05, "relaxed_lr": 0.05, "fcn_lr": 0.05, "momentum": 0.0,
    "weight_decay": 0.0, "batch_size": 20, "fused": False, "train_limit": 60, "test_limit": 40, "data": None,
    "device": "cpu", "threads": 1,
}  # fmt: skip


def test_an_older_config_without_these_fields_means_what_it_did(tmp_path):
    assert training.RelaxConfig.from_json(json.dumps(OLD)) == tiny()
    assert not tiny().selective
    run_dir = training.run_relax(tiny(relax_epochs=0, cnn_epochs=0, relax_times=(0,)), tmp_path / "run", quiet=True)
    old = {**OLD, "relax_epochs": 0, "cnn_epochs": 0, "relax_times": [0]}
    (run_dir / "config.json").write_text(json.dumps(old))
    training.run_relax(tiny(relax_epochs=0, cnn_epochs=0, relax_times=(0,)), run_dir, quiet=True)
    assert training.load_arm(run_dir, "elcn", 0, 0, 0) is not None
    told = r"relaxing is 'both' there and 'sharing' here"
    with pytest.raises(ValueError, match=told):
        training.run_relax(tiny(relax_epochs=0, cnn_epochs=0, relax_times=(0,), relaxing="sharing"), run_dir)


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [dict(), dict(momentum=0.9, weight_decay=0.01, carry_momentum=True)], ids=["sgd", "momentum"]
)
def test_with_the_sum_over_copies_a_frozen_elcn_repeats_the_cnn(tmp_path, settings):
    config = tiny(relaxing="none", copies="sum", relax_epochs=3, relax_times=(0, 1), arms=("cnn", "elcn"), **settings)
    run_dir = training.run_relax(config, tmp_path / "run", quiet=True)
    losses = {row["epoch"]: row for row in rows(run_dir, arm="cnn")}
    for time in (0, 1):
        embedded = rows(run_dir, arm="elcn", relax_epoch=time)
        assert [row["epoch"] for row in embedded] == [str(time + i) for i in range(4)]
        for row in embedded:
            for loss in ("train_loss", "test_loss"):
                assert float(row[loss]) == pytest.approx(float(losses[row["epoch"]][loss]), rel=2e-5)
            assert float(row["untied"]) < 1e-5 * float(row["tied"])
            assert float(row["off_local"]) == 0
    assert float(losses["4"]["train_loss"]) < float(losses["0"]["train_loss"]) - 0.01  # so there is something to repeat


def test_without_the_cnns_momentum_or_step_the_elcn_goes_its_own_way(tmp_path):
    settings = dict(relaxing="none", momentum=0.9, relax_times=(2,))
    for name, changes in {"mean": dict(carry_momentum=True), "fresh": dict(copies="sum")}.items():
        run_dir = training.run_relax(tiny(**settings, **changes), tmp_path / name, quiet=True)
        (cnn,), (elcn,) = rows(run_dir, arm="cnn", epoch=4), rows(run_dir, arm="elcn", epoch=4)
        assert abs(float(elcn["train_loss"]) - float(cnn["train_loss"])) > 1e-3


def test_carried_momentum_is_in_the_first_checkpoint_fused_or_not_and_the_control_has_it_too(tmp_path):
    from safetensors.torch import load_file

    settings = dict(momentum=0.9, carry_momentum=True, relaxed_lr=0.01, relax_times=(2,), relax_epochs=1)
    plain = training.run_relax(tiny(**settings), tmp_path / "plain", quiet=True, checkpoint_seconds=0.0)
    fused = training.run_relax(tiny(**settings, fused=True), tmp_path / "fused", quiet=True)
    assert rows(plain) == rows(fused)
    cnn, elcn = (load_file(plain / "checkpoints" / f"{name}-e2.safetensors") for name in ("cnn-seed0", "elcn-seed0-t2"))
    keys = [key for key in cnn if key.startswith("optimizer/")]
    assert keys
    assert set(keys) == {key for key in elcn if key.startswith("optimizer/")}
    for key in keys:
        assert elcn[key].sum() == pytest.approx(float(cnn[key].sum()), rel=1e-4, abs=1e-6)  # n copies of an n-th
    fresh = training.run_relax(tiny(**{**settings, "carry_momentum": False}), tmp_path / "fresh", quiet=True)
    (carried,), (without,) = (rows(run_dir, arm="cnn-relaxed", epoch=3) for run_dir in (plain, fresh))
    assert carried["train_loss"] != without["train_loss"]


@pytest.mark.parametrize(
    ("relaxing", "moves"), [("sharing", (True, False)), ("locality", (False, True)), ("both", (True, True))]
)
def test_only_what_is_relaxed_moves(tmp_path, relaxing, moves):
    config = tiny(relaxing=relaxing, parts=("tied:rate=0.5",), arms=("cnn", "efcn-dilated1"), relax_times=(1,))
    row = rows(training.run_relax(config, tmp_path / "run", quiet=True), arm="efcn-dilated1", epoch=3)[0]
    assert (float(row["untied"]) > 1e-4 * float(row["tied"]), float(row["off_local"]) > 0) == moves


# -- command line -------------------------------------------------------------------------------------------------

COMMAND = [
    "relax", "--preset", "digits", "--seeds", "1", "--arms", "cnn", "elcn", "--epochs", "0", "--relax-epochs", "1",
    "--relax-times", "0", "--train-limit", "20", "--test-limit", "20", "--threads", "1", "--no-report",
]  # fmt: skip


def test_the_command_line_gives_the_configuration(tmp_path):
    options = ["--relaxing", "sharing", "--part", "off-local:rate=0.5,l1=1e-5", "--part", "conv1/tied:rate=0"]
    options += ["--copies", "sum", "--momentum", "0.9", "--carry-momentum"]
    assert main([*COMMAND, *options, "--run-dir", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["parts"] == ["off-local:rate=0.5,l1=1e-05", "conv1/tied:rate=0"]
    assert (config["relaxing"], config["copies"], config["carry_momentum"]) == ("sharing", "sum", True)
    assert len(rows(tmp_path / "run", arm="elcn")) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--part", "off-local:rate=x"], "rate must be a number, got 'x'"),
        (["--part", "conv9/tied:rate=0"], "--part must name convolutions of the net, conv1, conv2, conv3"),
        (["--copies", "some"], "argument --copies: invalid choice: 'some'"),
        (["--relaxing", "all"], "argument --relaxing: invalid choice: 'all'"),
        (["--copies", "sum", "--fused"], "--fused must be left out beside relaxing, parts or copies"),
        (["--carry-momentum"], "--carry-momentum must come with momentum, got momentum 0"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(tmp_path, capsys, options, told):
    assert main([*COMMAND, *options, "--run-dir", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err
    assert not (tmp_path / "run").exists()
