"""Which nets are fused, and how their momentum goes through checkpoints; ``test_resume.py`` has their runs."""

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
from tests.training.runs import DIGITS


def test_nets_with_sparse_layers_are_fused_and_the_cnn_is_not():
    fused, plain = training.RelaxConfig(preset="digits", fused=True), training.RelaxConfig(preset="digits")
    assert isinstance(optimizer_of(fused, DIGITS, FCN, 0.1, build_like(FCN, DIGITS, 0)), es.FusedOptimizer)
    assert not isinstance(optimizer_of(plain, DIGITS, FCN, 0.1, build_like(FCN, DIGITS, 0)), es.FusedOptimizer)
    assert not isinstance(optimizer_of(fused, DIGITS, CNN, 0.1, DIGITS.fresh(0)), es.FusedOptimizer)


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
