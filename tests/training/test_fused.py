"""Fused training gives the numbers and the files of unfused training, bit by bit, and is gone on with after a kill."""

import dataclasses
import signal
import subprocess
import sys

import pytest
import torch

import efcn_sparse as es
import efcn_sparse.training as training
from efcn_sparse.fused import layer_update, updating
from efcn_sparse.training.arms import CNN, FCN
from efcn_sparse.training.optim.optimizer_state import live_states
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint
from efcn_sparse.training.run.nets import build_like
from efcn_sparse.training.run.optimizer import optimizer_of
from tests.training.runs import DIGITS, assert_same, checkpoints, cut_short

TINY = dict(
    seeds=(0,), arms=("cnn", "efcn-dilated1", "fcn"), cnn_epochs=1, relax_epochs=2, fcn_epochs=2, relax_times=(1,),
    momentum=0.9, weight_decay=0.01, lr=0.02, batch_size=20, train_limit=60, test_limit=40, threads=1, fused=True,
)  # fmt: skip

SCRIPT = """
import os, signal, sys
import efcn_sparse.training as training
from efcn_sparse.training.run.metrics import MetricsFile
append = MetricsFile.append

def kill_at_the_last_epoch(self, rows):
    append(self, rows)
    if rows[0]["arm"] == sys.argv[3] and rows[0]["epoch"] == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

MetricsFile.append = kill_at_the_last_epoch
config = training.RelaxConfig.from_json(open(sys.argv[1]).read())
training.run_relax(config, sys.argv[2], quiet=True, checkpoint_seconds=0.0)
"""


@pytest.fixture(scope="module")
def config():
    return training.RelaxConfig.from_preset("digits", **TINY)


@pytest.fixture(scope="module", autouse=True)
def _many_slices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 1 << 17)
        yield


@pytest.fixture(scope="module")
def fused_run(config, tmp_path_factory):
    return training.run_relax(config, tmp_path_factory.mktemp("fused") / "run", quiet=True)


def test_a_fused_run_writes_what_an_unfused_one_does(config, fused_run, tmp_path):
    unfused = training.run_relax(dataclasses.replace(config, fused=False), tmp_path / "run", quiet=True)
    assert_same(fused_run, unfused)


def test_nets_with_sparse_layers_are_fused_and_the_cnn_is_not():
    fused, plain = training.RelaxConfig(preset="digits", fused=True), training.RelaxConfig(preset="digits")
    assert isinstance(optimizer_of(fused, DIGITS, FCN, 0.1, build_like(FCN, DIGITS, 0)), es.FusedOptimizer)
    assert not isinstance(optimizer_of(plain, DIGITS, FCN, 0.1, build_like(FCN, DIGITS, 0)), es.FusedOptimizer)
    assert not isinstance(optimizer_of(fused, DIGITS, CNN, 0.1, DIGITS.fresh(0)), es.FusedOptimizer)


@pytest.mark.parametrize("fatal", range(1, 6, 2))
def test_an_interruption_after_any_reading_loses_nothing(config, fused_run, tmp_path, fatal):
    run_dir = tmp_path / "run"
    cut_short(fatal + 5, config, run_dir)  # the CNN's four rows come first
    training.run_relax(config, run_dir, quiet=True)
    assert_same(run_dir, fused_run)


def test_a_killed_process_loses_nothing(config, fused_run, tmp_path):
    arm, epoch = "efcn-dilated1", 3
    (tmp_path / "config.json").write_text(config.to_json())
    run_dir = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json"), str(run_dir), arm, str(epoch)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert checkpoints(run_dir).keys() < checkpoints(fused_run).keys() | {f"{arm}-seed0-t1-e{epoch - 1}.safetensors"}
    training.run_relax(config, run_dir, quiet=True)
    assert_same(run_dir, fused_run)


def states(net, optimizer):
    return live_states(net, optimizer)


def stepped(fused, steps, net=None, optimizer=None):
    torch.manual_seed(0)
    if net is None:
        cnn = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3))
        net = es.embed(cnn, torch.zeros(1, 2, 6, 6), support=es.Full())
        config = training.RelaxConfig(preset="digits", momentum=0.9, weight_decay=0.1, fused=fused)
        optimizer = optimizer_of(config, DIGITS, FCN, 0.1, net)
    for _ in range(steps):
        optimizer.zero_grad()
        with updating(optimizer):
            net(torch.randn(5, 2, 6, 6)).square().sum().backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize(("saver", "loader"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("workspace", [1 << 9, 1 << 20])
def test_the_momentum_travels_between_fused_unfused_and_other_slices(tmp_path, monkeypatch, saver, loader, workspace):
    path = tmp_path / "here.safetensors"
    net, optimizer = stepped(saver, 2)
    save_checkpoint(path, net, optimizer)
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", workspace)
    other, other_optimizer = stepped(loader, 1)
    load_checkpoint(path, other, other_optimizer)
    expected, got = states(net, optimizer), states(other, other_optimizer)
    assert expected.keys() == got.keys() == {0, 1, 2, 3}
    for place, parameter in enumerate(net.parameters()):
        assert expected[place]["momentum_buffer"].shape == parameter.shape
        assert torch.equal(expected[place]["momentum_buffer"], got[place]["momentum_buffer"])
    stepped(saver, 2, net, optimizer)
    stepped(loader, 2, other, other_optimizer)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
