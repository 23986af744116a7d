"""What a CNN's optimizer has gathered goes to its embedding's as law 4 has it: the gradients of copies sum up."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

import efcn_sparse as es
from efcn_sparse.fused import layer_update, updating
from efcn_sparse.training import Part, SelectiveSGD, carry_state
from efcn_sparse.training.optim.optimizer_state import live_states

SIZE = (2, 8, 7)
FROZEN = Part(rate=0.0)


def cnn():
    """Padding, a stride, a dilation and groups, so that kernel entries differ in their number of copies."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, padding=2, groups=2), nn.Tanh(),
        nn.Conv2d(6, 4, 2, dilation=2, bias=False), nn.Tanh(),
        nn.Flatten(), nn.Linear(36, 3),
    ).double()  # fmt: skip


def embedded(net, support=None):
    return es.embed(net, torch.ones(2, *SIZE, dtype=torch.double), support=support or es.Dilated(1))


def backward(net, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, generator=generator, dtype=torch.double) for size in ((5, *SIZE), (5, 3)))
    net.zero_grad()
    (net(x) - y).square().mean().backward()


def train(net, optimizer, seeds):
    for seed in seeds:
        with updating(optimizer):
            backward(net, seed)
        optimizer.step()


def own_history(net, make, seeds):
    """The CNN trained with ``make``, and an optimizer of its embedding that was at the CNN's weights all along."""
    optimizer, twin = make(net.parameters()), embedded(net)
    own = make(twin.parameters())
    for seed in seeds:
        with torch.no_grad():
            for parameter, source in zip(twin.parameters(), embedded(net).parameters(), strict=True):
                parameter.copy_(source)
        backward(twin, seed)
        own.step()
        train(net, optimizer, [seed])
    return optimizer, twin, own


def tied_part(twin, optimizer, key):
    """The tied parts of one state of each parameter."""
    holder = copy.deepcopy(twin)
    with torch.no_grad():
        for parameter, source in zip(holder.parameters(), twin.parameters(), strict=True):
            parameter.copy_(optimizer.state[source][key])
    return [parameter.detach() for parameter in es.project(holder, "cnn").parameters()]


MAKES = {
    "SGD": (lambda p: SGD(p, lr=0.2, momentum=0.9), ["momentum_buffer"]),
    "nesterov": (lambda p: SGD(p, lr=0.2, momentum=0.9, dampening=0.0, nesterov=True), ["momentum_buffer"]),
    "Adam": (lambda p: Adam(p, lr=0.01), ["exp_avg"]),
    "AdamW": (lambda p: AdamW(p, lr=0.01, amsgrad=True), ["exp_avg"]),
}


@pytest.mark.parametrize("name", MAKES)
def test_first_moments_are_the_tied_part_of_what_the_embedding_itself_would_have_gathered(name):
    make, keys = MAKES[name]
    net = cnn()
    optimizer, twin, own = own_history(net, make, range(4))
    efcn = embedded(net)
    carried = make(efcn.parameters())
    carry_state(net, optimizer, efcn, carried)
    for key in keys:
        for one, two in zip(tied_part(twin, own, key), efcn.parameters(), strict=True):
            assert float(one.abs().max()) > 1e-4
            torch.testing.assert_close(one, carried.state[two][key], atol=1e-15, rtol=1e-12)


def test_the_second_moment_is_that_of_the_mean_over_copies_and_so_at_most_their_own():
    net = cnn()
    optimizer, twin, own = own_history(net, MAKES["Adam"][0], range(3))
    efcn = embedded(net)
    carried = Adam(efcn.parameters())
    carry_state(net, optimizer, efcn, carried)
    own_squares, strictly = tied_part(twin, own, "exp_avg_sq"), 0
    for mine, two in zip(own_squares, efcn.parameters(), strict=True):
        square = carried.state[two]["exp_avg_sq"]
        assert bool((square <= mine * (1 + 1e-12)).all())
        strictly += int((square < 0.9 * mine).sum())
    assert strictly > 100
    weight, values = optimizer.state[net[0].weight]["exp_avg_sq"], carried.state[efcn[0].linear.values]["exp_avg_sq"]
    counts, ties = efcn[0].ties.counts, efcn[0].ties
    expected = ties.scatter((weight.flatten() / counts**2).view_as(weight))
    torch.testing.assert_close(values, expected, atol=0, rtol=1e-14)
    positions = efcn[0].linear.out_features // 4
    bias = optimizer.state[net[0].bias]["exp_avg_sq"] / positions**2
    torch.testing.assert_close(
        carried.state[efcn[0].linear.bias]["exp_avg_sq"], bias.repeat(positions), atol=0, rtol=1e-14
    )


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_with_adam_both_take_the_same_next_step_where_no_gradient_comes(kind):
    net = cnn()
    settings = dict(lr=0.01, eps=1e-14, weight_decay=0.1 if kind is AdamW else 0.0, amsgrad=True)
    optimizer = kind(net.parameters(), **settings)
    train(net, optimizer, range(4))
    efcn, before = embedded(net), copy.deepcopy(net)
    carried = kind(efcn.parameters(), **settings)
    carry_state(net, optimizer, efcn, carried)
    for model, one in ((net, optimizer), (efcn, carried)):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        one.step()
    assert es.deviation(efcn).off_local == 0
    assert es.deviation(efcn).untied < 1e-12
    for mine, theirs, was in zip(es.unembed(efcn).parameters(), net.parameters(), before.parameters(), strict=True):
        assert float((theirs - was).detach().abs().max()) > 1e-3
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("support", [es.Local(), es.Full()])
def test_the_control_goes_on_as_the_cnn_does_momentum_included(support, weight_decay):
    net = cnn()
    settings = dict(lr=0.2, momentum=0.9, weight_decay=weight_decay)
    sgd = SGD(net.parameters(), **settings)
    train(net, sgd, range(4))
    efcn, fresh = embedded(net, support), embedded(net, support)
    control, forgetful = (SelectiveSGD.as_cnn(one, **settings) for one in (efcn, fresh))
    carry_state(net, sgd, efcn, control)
    for seed in range(4, 12):
        for model, optimizer in ((net, sgd), (efcn, control), (fresh, forgetful)):
            train(model, optimizer, [seed])
        for mine, theirs in zip(es.unembed(efcn).parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    assert float((es.unembed(fresh)[0].weight - net[0].weight).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("copies", ["mean", "sum"])
def test_the_buffers_of_selective_sgd_are_in_its_own_scale(copies, rate):
    """As if it had stepped itself at the CNN's weights: the same gradients, and no memory but these."""
    net = cnn()

    def make(parameters):
        return SGD(parameters, lr=0.2, momentum=0.9)

    optimizer, efcn = make(net.parameters()), embedded(net)
    selective = SelectiveSGD(
        efcn, 0.0, momentum=0.9, untied=FROZEN, off_local=FROZEN, copies=copies,
        layers={"2": dict(tied=Part(rate))},
    )  # fmt: skip
    for seed in range(3):
        with torch.no_grad():
            for parameter, source in zip(efcn.parameters(), embedded(net).parameters(), strict=True):
                parameter.copy_(source)
        train(efcn, selective, [seed])
        train(net, optimizer, [seed])
    twin = embedded(net)
    other = SelectiveSGD(
        twin, 0.1, momentum=0.9, untied=FROZEN, off_local=FROZEN, copies=copies, layers={"2": dict(tied=Part(rate))}
    )
    carry_state(net, optimizer, twin, other)
    for mine, theirs in zip(efcn.parameters(), twin.parameters(), strict=True):
        own, got = (one.state[p]["momentum_buffer"] for one, p in ((selective, mine), (other, theirs)))
        torch.testing.assert_close(got, own, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize(("kind", "settings"), [(SGD, dict(lr=0.1, momentum=0.9)), (AdamW, dict(lr=0.01))])
def test_a_fused_optimizer_takes_the_same_state_and_steps(monkeypatch, kind, settings):
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 1 << 10)
    net = cnn()
    optimizer = kind(net.parameters(), **settings)
    train(net, optimizer, range(3))
    plain, fused = embedded(net), embedded(net)
    one = kind(plain.parameters(), **settings)
    other = es.FusedOptimizer(fused, lambda p: kind(p, **settings))
    carry_state(net, optimizer, plain, one)
    carry_state(net, optimizer, fused, other)
    for seed in range(3, 6):
        train(plain, one, [seed])
        train(fused, other, [seed])
    for mine, theirs in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    mine, theirs = live_states(plain, one), live_states(fused, other)
    assert mine.keys() == theirs.keys()
    for i, state in mine.items():
        assert state.keys() == theirs[i].keys()
        for key, tensor in state.items():
            assert torch.equal(tensor, theirs[i][key])


def test_off_local_entries_and_those_outside_the_support_start_at_zero():
    net = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)
    optimizer = Adam(net.parameters(), lr=0.1)
    net(x).square().sum().backward()
    optimizer.step()
    efcn = es.embed(net, x, layers={"*": dict(block_shape=(7, 4), support=es.Dilated(1))})
    carried = Adam(efcn.parameters(), lr=0.1)
    carry_state(net, optimizer, efcn, carried)
    local = efcn.ties.maps[efcn.ties.class_of_block.long()] >= 0
    for key in ("exp_avg", "exp_avg_sq"):
        state = carried.state[efcn.linear.values][key]
        assert bool((state[~local] == 0).all())
        assert bool((state[local] != 0).all())


def test_what_is_no_convolution_is_copied_and_nothing_is_shared():
    net = cnn()
    optimizer = Adam(net.parameters(), lr=0.01)
    train(net, optimizer, range(3))
    efcn = embedded(net)
    carried = Adam(efcn.parameters(), lr=0.01)
    carry_state(net, optimizer, efcn, carried)
    before = copy.deepcopy(optimizer.state_dict())
    for one, other in ((net[7].weight, efcn[7].weight), (net[7].bias, efcn[7].bias)):
        assert all(torch.equal(optimizer.state[one][key], carried.state[other][key]) for key in ("exp_avg", "step"))
    assert {float(state["step"]) for state in carried.state.values()} == {3.0}
    train(efcn, carried, range(2))
    after = optimizer.state_dict()
    assert all(torch.equal(before["state"][i][key], after["state"][i][key]) for i in after["state"] for key in
               ("step", "exp_avg", "exp_avg_sq"))  # fmt: skip


def test_a_net_without_embedded_convolutions_goes_on_as_itself():
    net = cnn()
    optimizer = SGD(net.parameters(), lr=0.2, momentum=0.9)
    train(net, optimizer, range(2))
    twin = copy.deepcopy(net)
    other = SGD(twin.parameters(), lr=0.2, momentum=0.9)
    carry_state(net, optimizer, twin, other)
    for model, one in ((net, optimizer), (twin, other)):
        train(model, one, range(2, 5))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


def test_a_fresh_optimizer_and_one_without_momentum_leave_the_other_fresh():
    net = cnn()
    for optimizer in (SGD(net.parameters(), lr=0.1, momentum=0.9), SGD(net.parameters(), lr=0.1)):
        if optimizer.defaults["momentum"] == 0:
            train(net, optimizer, [0])
        efcn = embedded(net)
        other = SGD(efcn.parameters(), lr=0.1, momentum=0.9)
        carry_state(net, optimizer, efcn, other)
        assert not any(other.state.values())


def test_frozen_parameters_are_left_out():
    net = cnn()
    net[0].requires_grad_(False)
    optimizer = SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    train(net, optimizer, range(2))
    efcn = embedded(net)
    efcn[7].requires_grad_(False)
    other = SGD([p for p in efcn.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    carry_state(net, optimizer, efcn, other)
    assert set(other.state) == set(other.param_groups[0]["params"])


def momentum(parameters):
    return SGD(parameters, lr=0.1, momentum=0.9)


REFUSED = [
    (lambda p: RMSprop(p), momentum, TypeError,
     "cnn_optimizer must be one of SGD, SelectiveSGD, Adam, AdamW, whose state can be mapped to copies, got RMSprop"),
    (momentum, lambda p: Adagrad(p), TypeError, "efcn_optimizer must be one of SGD, SelectiveSGD, Adam, AdamW"),
    (momentum, lambda p: Adam(p), ValueError, "efcn_optimizer must be of the family of SGD, got Adam"),
    (momentum, lambda p: SGD(p, lr=0.1), ValueError,
     "efcn_optimizer must have momentum, which cnn_optimizer has, got 0"),
    (lambda p: Adam(p), lambda p: Adam(p, amsgrad=True), ValueError,
     "amsgrad of efcn_optimizer must be cnn_optimizer's {False}, got {True}"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "other", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_cannot_be_mapped_is_refused_by_name(make, other, error, message):
    net = cnn()
    optimizer, efcn = make(net.parameters()), embedded(net)
    train(net, optimizer, [0])
    target = other(efcn.parameters())
    held = copy.deepcopy(target.state_dict())
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        carry_state(net, optimizer, efcn, target)
    assert target.state_dict()["state"].keys() == held["state"].keys()


def test_a_target_that_has_stepped_and_models_that_do_not_belong_together_are_refused():
    net = cnn()
    optimizer, efcn = momentum(net.parameters()), embedded(net)
    train(net, optimizer, [0])
    target = momentum(efcn.parameters())
    train(efcn, target, [0])
    with pytest.raises(ValueError, match=r"^efcn_optimizer must not have stepped yet, got one that holds state$"):
        carry_state(net, optimizer, efcn, target)
    other = embedded(net)
    for place, module, message in (
        (0, nn.Conv2d(2, 4, 3, padding=1, bias=False),
         "cnn must have a convolution with weight [4, 2, 3, 3] and a bias at '0', got Conv2d(2, 4,"),
        (2, nn.Tanh(), "cnn must have a convolution with weight [6, 2, 3, 3] and a bias at '2', got Tanh()"),
        (7, nn.Linear(36, 2), "cnn must have a parameter '7.weight' of [3, 36], got [2, 36]"),
    ):  # fmt: skip
        wrong = copy.deepcopy(net)
        wrong[place] = module.double()
        target = momentum(other.parameters())
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            carry_state(wrong, momentum(wrong.parameters()), other, target)
        assert not target.state


class Centered(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize("conv", [lambda: Centered(2, 4, 3), lambda: weight_norm(nn.Conv2d(2, 4, 3))])
def test_the_state_of_what_a_kernel_is_computed_from_is_not_that_of_a_kernel(conv):
    net, x = nn.Sequential(conv(), nn.Flatten()), torch.randn(2, 2, 5, 5)
    efcn, optimizer = es.embed(net, x), momentum(net.parameters())
    net(x).square().sum().backward()
    optimizer.step()
    target = momentum(efcn.parameters())
    with pytest.raises(ValueError, match=r"^cnn must hold the kernel of '0' as a parameter, got one that \w+ computes"):
        carry_state(net, optimizer, efcn, target)
    assert not target.state


def test_the_positions_of_a_bias_are_counted_exactly_in_16_bits():
    cnn = nn.Conv1d(1, 1, 1).bfloat16()  # 257 positions, which bfloat16 rounds to 256
    efcn = es.embed(cnn, torch.zeros(1, 1, 257, dtype=torch.bfloat16))
    source, target = momentum(cnn.parameters()), momentum(efcn.parameters())
    source.state[cnn.bias]["momentum_buffer"] = torch.full((1,), 512.0, dtype=torch.bfloat16)
    carry_state(cnn, source, efcn, target)
    carried = target.state[efcn.linear.bias]["momentum_buffer"]
    assert torch.equal(carried, torch.full((257,), 512 / 257, dtype=torch.bfloat16))
