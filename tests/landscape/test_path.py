"""Nets between two nets against dense interpolation of their weights."""

import math
import re

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.landscape.between import Between
from tests.landscape.nets import batch, cnn, efcn, loss

ENDS = {
    "cnn and efcn": lambda: (cnn(0), efcn(es.Dilated(1), 1)),
    "efcn and cnn": lambda: (efcn(es.Full(), 1), cnn(0)),
    "two supports": lambda: (efcn(es.Local(), 0, block_shape=(3, 4)), efcn(es.Full(), 1, block_shape=(2, 6))),
    "grown": lambda: (efcn(es.Grown(1.5), 0), efcn(es.Dilated(1), 1)),
    "two cnns": lambda: (cnn(0), cnn(1)),
}


def dense(layer):
    """W and the bias of an embedded convolution, or of a convolution as its embedding has them."""
    if isinstance(layer, nn.Conv2d):
        layer = es.embed(layer, torch.zeros(1, *SIZES[layer.in_channels], dtype=torch.float64))
    return layer.linear.weight.detach(), layer.linear.bias.detach()


SIZES = {2: (2, 6, 6), 3: (3, 3, 3)}


@pytest.mark.parametrize("keep_norms", [False, True])
@pytest.mark.parametrize("ends", ENDS)
def test_a_point_is_the_interpolation_of_the_dense_matrices(ends, keep_norms):
    a, b = ENDS[ends]()
    net = Between(a, b)
    net.move(0.3, keep_norms=keep_norms)

    def between(one, other):
        mean = 0.7 * one + 0.3 * other
        return mean * (0.7 * one.norm() + 0.3 * other.norm()) / mean.norm() if keep_norms else mean

    for number, channels in ((0, 2), (4, 3)):
        weight, bias = (between(*pair) for pair in zip(dense(a[number]), dense(b[number]), strict=True))
        x = torch.randn(5, *SIZES[channels], dtype=torch.float64)
        expected = x.movedim(1, -1).flatten(1) @ weight.T + bias
        if ends != "two cnns":
            assert torch.allclose(net.net[number](x).movedim(1, -1).flatten(1), expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(net.net[7].weight, between(a[7].weight, b[7].weight).detach(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "curvilinear", "output"])
def test_the_ends_are_the_ends_and_both_nets_stay_as_they_are(kind):
    a, b = (net.train() for net in ENDS["two supports"]())
    before = [parameter.clone() for net in (a, b) for parameter in net.parameters()]
    found = es.landscape.path(a, b, lambda net: float(loss(net, batch())), points=3, kind=kind, batches=[batch()[0]])
    assert all(module.training for net in (a, b) for module in net.modules())
    assert all(torch.equal(*pair) for pair in zip(before, [p for net in (a, b) for p in net.parameters()], strict=True))
    assert found.positions == (0.0, 0.5, 1.0)
    for end, value in ((a, found.losses[0]), (b, found.losses[-1])):
        assert math.isclose(value, loss(end.eval(), batch()).item(), rel_tol=1e-9)


def test_predictions_are_averaged():
    a, b = ENDS["cnn and efcn"]()
    x = batch()[0]
    found = []
    es.landscape.path(a, b, lambda net: found.append(net(x)) or 0.0, points=[0, 0.25, 1], kind="output")
    assert torch.allclose(found[1], 0.75 * a(x) + 0.25 * b(x))


def test_statistics_of_inner_points_are_those_of_the_batches():
    a, b = ENDS["two cnns"]()
    seen = []

    def evaluate(net):
        seen.append((net.net[1].running_mean.clone(), net.net[0](batch()[0]).mean((0, 2, 3))))
        return 0.0

    es.landscape.path(a, b, evaluate, points=3, batches=[batch()[0]])
    assert torch.allclose(seen[0][0], a[1].running_mean)
    assert torch.allclose(*seen[1])
    with pytest.raises(ValueError, match="batches must be given"):
        es.landscape.path(a, b, evaluate)


def test_the_barrier_is_the_rise_above_the_line_between_the_ends():
    losses = iter([1.0, 4.0, 2.5, 3.0])
    one = nn.Linear(2, 2)
    found = es.landscape.path(one, one, lambda net: next(losses), points=[0, 0.25, 0.5, 1])
    assert math.isclose(found.barrier, 4.0 - 1.5)
    assert math.isclose(found.rise, 4.0 - 3.0)
    falls_late = iter([3.0, 2.9, 1.0])
    found = es.landscape.path(one, one, lambda net: next(falls_late), points=3)
    assert (found.barrier, found.rise) == (pytest.approx(0.9), 0.0)


@pytest.mark.parametrize(("value", "barrier"), [(math.inf, math.inf), (math.nan, math.nan)])
def test_losses_that_are_not_finite_are_reported(value, barrier):
    losses = iter([1.0, value, 1.0])
    one = nn.Linear(2, 2)
    found = es.landscape.path(one, one, lambda net: next(losses), points=3)
    assert str(found.losses[1]) == str(value)
    assert str(found.barrier) == str(barrier)


def biased(bias):
    net = nn.Identity()
    net.weight, net.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)) if bias else None
    return net


def twice(shared):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if shared:
        net[1].weight = net[0].weight
    return net


def counting(count):
    net = nn.Identity()
    net.register_buffer("count", torch.tensor(count))
    return net


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3)), "out_features=3, bias=True. in '0'"),
        (nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Conv2d(2, 2, 1)), "got Linear.* and Conv2d.* in '0'"),
        (nn.Sequential(nn.LeakyReLU(0.1)), nn.Sequential(nn.LeakyReLU(0.2)), "negative_slope=0.1.* in '0'"),
        (biased(True), biased(False), r"got \[2\] and none in 'bias'"),
        (biased(False), biased(True), r"got none and \[2\] in 'bias'"),
        (twice(True), twice(False), "must share the same parameters"),
        (counting(1), counting(2), "got other integers in 'count'"),
        (nn.Sequential(), nn.Sequential(nn.ReLU()), "got none with the name '0'"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(), "got none with the name '0'"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3)),
            nn.Sequential(es.embed(nn.Conv2d(1, 1, 3, padding=1), torch.zeros(1, 1, 4, 4))),
            "in '0'",
        ),
    ],
)
def test_nets_that_do_not_match_are_refused_by_name(a, b, message):
    with pytest.raises(ValueError, match=message):
        es.landscape.path(a, b, lambda net: 0.0)


@pytest.mark.parametrize("given", ["a", None, {"loss": 1.0, "accuracy": None}, torch.zeros(3)])
def test_what_evaluate_gives_is_numbers(given):
    told = re.escape(f"evaluate must give a number, or a mapping with 'loss' to numbers, got {given!r}")
    with pytest.raises(ValueError, match=f"^{told}$"):
        es.landscape.path(cnn(0), cnn(1), lambda net: given, kind="output")


def test_a_layer_with_a_product_has_no_norms():
    with pytest.raises(ValueError, match="'0' must have weights one by one"):
        es.landscape.path(efcn(es.Local()), efcn(es.LowRank(1)), lambda net: 0.0, kind="curvilinear", batches=[0])


def test_nets_may_differ_in_what_does_not_count_and_have_parametrizations():
    nets = [
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Dropout(p), nn.ReLU(inplace))
        for p, inplace in ((0.1, False), (0.2, True))
    ]
    found = es.landscape.path(*nets, lambda net: float(net(torch.ones(1, 2)).sum()), points=2)
    assert found.losses == pytest.approx([net.eval()(torch.ones(1, 2)).sum().item() for net in nets])


class Centered(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_a_convolution_that_computes_its_weight_has_no_norm_of_that():
    net, x = nn.Sequential(Centered(2, 3, 3)), torch.randn(2, 2, 5, 5)
    twin = es.embed(net, x)
    with pytest.raises(ValueError, match=r"^a and b must match, got\n  Centered\(2, 3"):
        es.landscape.path(net, twin, lambda one: float(one(x).sum()), points=3)
    assert es.landscape.path(es.unembed(twin), twin, lambda one: float(one(x).square().sum()), points=3)
