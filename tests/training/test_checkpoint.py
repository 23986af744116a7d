"""Checkpoints bring back what they hold, whatever chose its block shapes, and a damaged one is told by name."""

import re
import sys

import pytest
import torch

import efcn_sparse.training as training
from efcn_sparse.cli.main import main
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.training.checkpoint import load_checkpoint, save_checkpoint, stored_block_shapes
from efcn_sparse.training.readings import Readings

ARMS = ("cnn", "fcn", "elcn")
OTHER = {1: (32, 2), 16: (8, 16), 32: (16, 8)}  # by input channels


@pytest.fixture(scope="module")
def config():
    return training.RelaxConfig.from_preset(
        "digits", seeds=(0,), arms=ARMS, cnn_epochs=0, relax_epochs=2, fcn_epochs=1, relax_times=(0,),
        momentum=0.9, lr=0.02, batch_size=20, train_limit=40, test_limit=20, threads=1,
    )  # fmt: skip


def other_choice(patch):
    module = sys.modules["efcn_sparse.embedding.embed"]  # its name leads to the function
    patch.setattr(module, "choose_block_shape", lambda geometry, support: OTHER[geometry.in_channels])


@pytest.fixture(scope="module")
def older_run(config, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        other_choice(patch)
        return training.run_relax(config, tmp_path_factory.mktemp("older") / "run", quiet=True)


def block_shapes(model):
    return {name: m.linear.pattern.block_shape for name, m in model.named_modules() if isinstance(m, EmbeddedConv)}


@pytest.mark.parametrize(("arm", "time", "epoch"), [("elcn", 0, 0), ("elcn", 0, 2), ("fcn", None, 1)])
def test_a_run_with_other_block_shapes_loads(older_run, arm, time, epoch):
    model = training.load_arm(older_run, arm, 0, time, epoch)
    assert list(block_shapes(model).values()) == list(OTHER.values())
    with torch.no_grad():
        (row,) = [
            line.split(",")
            for line in (older_run / "metrics.csv").read_text().splitlines()
            if line.startswith(f"{arm},0,{'' if time is None else time},{epoch},")
        ]
        images = training.load_data(training.RelaxConfig.from_json((older_run / "config.json").read_text()))
        loss = torch.nn.functional.cross_entropy(model(images.test_x), images.test_y)
    assert float(loss) == pytest.approx(float(row[7]), rel=1e-5)


def test_a_run_with_other_block_shapes_is_gone_on_with_bit_by_bit(config, older_run, tmp_path, monkeypatch):
    append, run_dir = Readings.append, tmp_path / "run"

    def cut(self, rows):
        append(self, rows)
        if "lr" in self._columns and rows[0]["arm"] == "elcn" and rows[0]["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        other_choice(patch)
        patch.setattr(Readings, "append", cut)
        with pytest.raises(KeyboardInterrupt):
            training.run_relax(config, run_dir, quiet=True, checkpoint_seconds=0.0)
    training.run_relax(config, run_dir, quiet=True)  # chooses other shapes by now
    last = "elcn-seed0-t0-e2.safetensors"
    assert (run_dir / "checkpoints" / last).read_bytes() == (older_run / "checkpoints" / last).read_bytes()


def test_block_shapes_are_read_per_embedded_layer(older_run):
    stored = stored_block_shapes(older_run / "checkpoints" / "elcn-seed0-t0-e0.safetensors")
    assert stored == dict(zip(("conv1", "conv2", "conv3"), OTHER.values(), strict=True))
    assert stored_block_shapes(older_run / "checkpoints" / "cnn-seed0-e0.safetensors") == {}


def a_linear_layer(path):
    save_checkpoint(path, torch.nn.Linear(3, 4))
    return torch.nn.Linear(3, 4)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:5], lambda b: b[:-1], lambda b: b"x" * len(b)])
def test_a_damaged_file_is_told_by_name(tmp_path, damage):
    path = tmp_path / "torn.safetensors"
    model = a_linear_layer(path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path.write_bytes(damage(path.read_bytes()))
    for read in (lambda: load_checkpoint(path, model), lambda: stored_block_shapes(path)):
        with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} is damaged (")) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_state_of_another_model_is_told_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    a_linear_layer(path)
    with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} must hold the state of this model: ")):
        load_checkpoint(path, torch.nn.Linear(3, 5))


def test_a_missing_file_is_told(tmp_path):
    for read in (lambda: stored_block_shapes(tmp_path / "none"), lambda: load_checkpoint(tmp_path / "none", None)):
        with pytest.raises(FileNotFoundError, match=re.escape(f"there is no checkpoint {tmp_path / 'none'}")):
            read()


def test_a_damaged_checkpoint_stops_the_command_and_its_removal_lets_it_go_on(tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = [
        "relax", "--preset", "digits", "--seeds", "1", "--arms", "cnn", "elcn", "--epochs", "1", "--relax-epochs", "1",
        "--relax-times", "0", "--train-limit", "20", "--test-limit", "20", "--threads", "1", "--no-report",
        "--run-dir", str(run_dir),
    ]  # fmt: skip
    assert main(command) == 0
    numbers = capsys.readouterr().out.splitlines()[-4:]
    checkpoints = run_dir / "checkpoints"
    torn = checkpoints / "elcn-seed0-t0-e0.safetensors"
    torn.write_bytes(torn.read_bytes()[:-9])
    (checkpoints / "elcn-seed0-t0-e1.safetensors").unlink()
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"efcn-sparse: error: checkpoint {torn} is damaged (")
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match="is damaged"):
        training.load_arm(run_dir, "elcn", 0, 0, 0)
    torn.unlink()
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == numbers
