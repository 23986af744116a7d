"""An arm with a low-rank part: what it adds to the rows, to the momentum and to what can be set."""

import pytest
import torch

import efcn_sparse as es
import efcn_sparse.training as training
from efcn_sparse.training.optim.carry import carry_state
from efcn_sparse.training.optim.selective import SelectiveSGD
from efcn_sparse.training.optim.shares import Part
from tests.training.runs import LOWRANK, rows


def low_rank_parts(net):
    return {name: layer.low_rank for name, layer in net.named_modules() if getattr(layer, "low_rank", None) is not None}


def test_leaves_the_receptive_fields(whole_run):
    run_dir = whole_run("low-rank")
    nets = [training.load_arm(run_dir, LOWRANK, 0, 1, epoch) for epoch in training.kept_epochs(run_dir, LOWRANK, 0, 1)]
    first, last = low_rank_parts(nets[0]), low_rank_parts(nets[-1])
    for name, part in first.items():
        assert not part.left.any()
        assert last[name].left.any()
        across = part.right.shape[1]
        torch.testing.assert_close(part.right.T @ part.right, torch.eye(across), atol=1e-5, rtol=0)  # along a gradient
    mine, local = ([row for row in rows(run_dir, "metrics") if row["arm"] == arm] for arm in (LOWRANK, "elcn"))
    more = sum(part.left.numel() + part.right.numel() for part in last.values())
    assert {int(row["stored"]) for row in mine} == {int(local[0]["stored"]) + more}
    layers = [row for row in rows(run_dir, "layers") if row["arm"] == LOWRANK and row["epoch"] == "3"]
    assert sum(int(row["stored"]) for row in layers) == int(mine[0]["stored"])
    assert mine[0]["test_loss"] == local[0]["test_loss"]
    assert float(mine[0]["delta"]) == 0.0
    assert float(mine[-1]["delta"]) > 0
    torch.testing.assert_close(es.deviation(nets[-1]).delta, float(mine[-1]["delta"]), rtol=1e-6, atol=0)
    assert {row[name] for row in (*mine, *layers) for name in ("leak", "captured")} == {""}  # U and V follow what leaks
    assert float(local[-1]["leak"]) > 0


def test_momentum_is_carried_past_it():
    torch.manual_seed(0)
    cnn = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 2))
    x = torch.randn(4, 2, 7, 7)
    for make in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)):
        optimizer = make(cnn.parameters())
        cnn(x).square().sum().backward()
        optimizer.step()
        twin, other = (es.embed(cnn, x, support=support) for support in (es.LowRank(2), es.Local()))
        states = []
        for net in (twin, other):
            of_net = make(net.parameters())
            carry_state(cnn, optimizer, net, of_net)
            states.append({name: of_net.state.get(parameter) for name, parameter in net.named_parameters()})
        for name, state in states[0].items():
            if "low_rank" in name:
                assert not state
            else:
                assert all(torch.equal(tensor, states[1][name][key]) for key, tensor in state.items())


def test_off_local_settings_are_refused():
    twin = es.embed(torch.nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 6, 6), support=es.LowRank(2))
    for settings in (dict(off_local=Part(rate=0.0)), dict(off_local=Part(l1=0.1)), dict(weight_decay=0.1)):
        with pytest.raises(
            NotImplementedError, match=r"^model: off_local must be Part\(weight_decay=0\.\d\) beside a "
        ):
            SelectiveSGD(twin, lr=0.1, **settings)
    for relaxing in (dict(relaxing="sharing"), dict(parts=("off-local:l1=1e-5",))):
        with pytest.raises(ValueError, match=r"^arms must hold no efcn-lowrank<rank> where .*, got efcn-lowrank3$"):
            training.RelaxConfig.from_preset("digits", arms=("cnn", LOWRANK), **relaxing)
    training.RelaxConfig.from_preset("digits", arms=("cnn", LOWRANK), relaxing="locality", weight_decay=1e-3)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    nets = twin, es.embed(torch.nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 6, 6), support=es.LowRank(2))
    nets[1].load_state_dict(twin.state_dict())
    x = torch.randn(4, 2, 6, 6)
    for net, optimizer in zip(nets, (plain, SelectiveSGD(nets[1], lr=0.1)), strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            (net(x) - x.mean()).square().mean().backward()
            optimizer.step()
    assert twin.low_rank.left.any()
    for mine, his in zip(twin.parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, his)


def test_names_of_arms():
    for name in ("efcn-lowrank", "efcn-lowrank0", "efcn-lowrank2.5", "efcn-lowrank08", "lowrank2"):
        with pytest.raises(ValueError, match=r"^each of arms must be one of cnn, fcn, elcn, "):
            training.RelaxConfig.from_preset("digits", arms=("cnn", name))
    wanted = ("cnn", "efcn-full", "efcn-lowrank16", "efcn-lowrank2-dilated1", "efcn-lowrank2", "efcn-grown2", "elcn")
    config = training.RelaxConfig.from_preset("digits", arms=wanted)
    assert tuple(map(str, config.embedded_arms)) == (
        "elcn", "efcn-grown2", "efcn-lowrank2", "efcn-lowrank2-dilated1", "efcn-lowrank16", "efcn-full"
    )  # fmt: skip
