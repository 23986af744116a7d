"""Checkpoints bring back what they hold, whatever chose its block shapes, and a damaged one is told by name."""

import re
import sys

import pytest
import safetensors
import safetensors.torch
import torch

import efcn_sparse as es
import efcn_sparse.training as training
from efcn_sparse.cli.main import main
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.fused import layer_update, updating
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint, stored_block_shapes
from tests.training.runs import cut_short

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
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        other_choice(patch)
        cut_short(3, config, run_dir, arm="elcn")
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


def stepped(make, seed, steps=2):
    """A net with a convolution, an embedded one and a normalization, and its optimizer after some steps."""
    torch.manual_seed(seed)
    embedded = es.embed(torch.nn.Conv2d(8, 4, 3), torch.zeros(1, 8, 6, 6), support=es.Dilated(1))
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3), torch.nn.BatchNorm2d(8), embedded)
    net[0].to(memory_format=torch.channels_last)
    optimizer = make(net)
    for _ in range(steps):
        optimizer.zero_grad()
        with updating(optimizer):
            net(torch.randn(5, 2, 8, 8)).square().sum().backward()
        optimizer.step()
    return net, optimizer


def momentum(net):
    return torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)


OPTIMIZERS = {
    "momentum": momentum,
    "fused momentum": lambda net: es.FusedOptimizer(net, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "adam": lambda net: torch.optim.AdamW(net.parameters(), lr=0.01),
    "fused adam": lambda net: es.FusedOptimizer(net, lambda p: torch.optim.AdamW(p, lr=0.01)),
}


def told_apart(net, optimizer):
    """Every number of a net and its optimizer, by name."""
    state = optimizer.state
    found = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for i, holder in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        found |= {f"{i}/{key}": one.clone() for key, one in state.get(holder, {}).items() if torch.is_tensor(one)}
    return found


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_net_and_its_optimizer_go_on_from_a_file_as_if_nothing_had_been(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 1 << 12)  # many slices
    path = tmp_path / "here.safetensors"
    net, optimizer = stepped(OPTIMIZERS[kind], seed=1)
    save_checkpoint(path, net, optimizer)
    for steps in (0, 1):  # into an optimizer without state, and into one with it
        other, other_optimizer = stepped(OPTIMIZERS[kind], seed=2, steps=steps)
        load_checkpoint(path, other, other_optimizer)
        here, there = told_apart(net, optimizer), told_apart(other, other_optimizer)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)
    for one, its in ((net, optimizer), (other, other_optimizer)):
        torch.manual_seed(3)
        its.zero_grad()
        with updating(its):
            one(torch.randn(5, 2, 8, 8)).square().sum().backward()
        its.step()
    here, there = told_apart(net, optimizer), told_apart(other, other_optimizer)
    assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.mark.parametrize("kind", ["momentum", "fused momentum"])
def test_what_is_there_is_written_over_in_place(tmp_path, kind):
    path = tmp_path / "here.safetensors"
    save_checkpoint(path, *stepped(OPTIMIZERS[kind], seed=1))
    net, optimizer = stepped(OPTIMIZERS[kind], seed=2)
    held = [*net.state_dict(keep_vars=True).values()]
    held = [tensor for tensor in held if tensor.is_floating_point()]
    held += [one["momentum_buffer"] for one in optimizer.state.values()]
    before = [(tensor.data_ptr(), tensor.stride()) for tensor in held]
    load_checkpoint(path, net, optimizer)
    held[len(held) - len(optimizer.state) :] = [one["momentum_buffer"] for one in optimizer.state.values()]
    assert [(tensor.data_ptr(), tensor.stride()) for tensor in held] == before


def test_a_fused_run_and_an_unfused_one_write_the_same_file(tmp_path, monkeypatch):
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 1 << 12)
    for kind in ("momentum", "fused momentum"):
        save_checkpoint(tmp_path / kind, *stepped(OPTIMIZERS[kind], seed=1))
    assert (tmp_path / "momentum").read_bytes() == (tmp_path / "fused momentum").read_bytes()


def state_for_the_library(net, optimizer):
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    for place, parameter in enumerate(net.parameters()):
        tensors[f"optimizer/{place}/momentum_buffer"] = optimizer.state[parameter]["momentum_buffer"].contiguous()
    return tensors


def test_the_library_reads_our_files(tmp_path):
    path = tmp_path / "here.safetensors"
    net, optimizer = stepped(momentum, seed=1)
    save_checkpoint(path, net, optimizer)
    expected, held = state_for_the_library(net, optimizer), safetensors.torch.load_file(path)
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in expected)
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == expected.keys()
        assert torch.equal(file.get_slice("2.linear.values")[1:3], expected["2.linear.values"][1:3])


def test_files_that_the_library_wrote_load(tmp_path):
    """As earlier versions did."""
    path = tmp_path / "here.safetensors"
    net, optimizer = stepped(momentum, seed=1)
    safetensors.torch.save_file(state_for_the_library(net, optimizer), path)
    for kind in ("momentum", "fused momentum"):
        other, other_optimizer = stepped(OPTIMIZERS[kind], seed=2)
        load_checkpoint(path, other, other_optimizer)
        save_checkpoint(tmp_path / "again", other, other_optimizer)
        save_checkpoint(tmp_path / "first", net, optimizer)
        assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()


def test_the_state_of_another_optimizer_is_refused_before_anything_changes(tmp_path):
    path = tmp_path / "here.safetensors"
    net, optimizer = stepped(momentum, seed=1)
    tensors = state_for_the_library(net, optimizer)
    for name, tensor, told in (
        (
            "optimizer/0/momentum_buffer",
            torch.ones(3),
            r"momentum_buffer of parameter 0 must be \[8, 2, 3, 3\], got \[3\]",
        ),
        ("optimizer/9/momentum_buffer", torch.ones(3), "the optimizer must have parameter 9, got 6 parameters"),
    ):
        safetensors.torch.save_file(tensors | {name: tensor}, path)
        for kind in ("momentum", "fused momentum"):
            other, other_optimizer = stepped(OPTIMIZERS[kind], seed=2)
            before = told_apart(other, other_optimizer)
            with pytest.raises(ValueError, match=f"{re.escape(str(path))} must hold the state of this model: {told}"):
                load_checkpoint(path, other, other_optimizer)
            after = told_apart(other, other_optimizer)
            assert all(torch.equal(before[name], after[name]) for name in before)


def test_blocks_do_not_move_for_a_checkpoint_that_is_refused(tmp_path):
    path = tmp_path / "here.safetensors"

    def grown(seed):
        torch.manual_seed(seed)
        net = es.embed(torch.nn.Conv2d(4, 4, 3), torch.zeros(1, 4, 8, 8), support=es.Grown(2.0))
        optimizer = momentum(net)
        net(torch.randn(3, 4, 8, 8)).square().sum().backward()
        optimizer.step()
        return net, optimizer

    net, optimizer = grown(1)
    a, b = torch.randn(3, net.linear.out_features), torch.randn(3, net.linear.in_features)
    before = net.linear.pattern
    es.regrow(net, a, b, blocks=3, optimizer=optimizer)
    assert net.linear.pattern != before
    save_checkpoint(path, net, optimizer)
    other, other_optimizer = grown(2)
    load_checkpoint(path, other, other_optimizer)
    assert other.linear.pattern == net.linear.pattern
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"optimizer/0/momentum_buffer": torch.ones(3)}, path)
    other, other_optimizer = grown(2)
    with pytest.raises(ValueError, match="momentum_buffer of parameter 0 must be"):
        load_checkpoint(path, other, other_optimizer)
    assert other.linear.pattern == before
