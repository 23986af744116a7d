"""Nets on a common support, and strings of them."""

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.landscape.common_support import on_common_support
from tests.landscape.nets import batch, cnn, efcn, loss
from tests.landscape.test_path import ENDS

WRONG_LOSSES = [
    (lambda net, given: net(given[0]), r"give a scalar tensor, got \[10, 3\]"),
    (lambda net, given: 5.0, "give a scalar tensor, got float"),
    (
        lambda net, given: net(given[0]).sum().detach(),
        "depend on the parameters of the net, got a tensor without a gradient",
    ),
]


@pytest.mark.parametrize(("wrong", "told"), WRONG_LOSSES)
def test_a_loss_is_a_scalar(wrong, told):
    with pytest.raises(ValueError, match=f"^loss must {told}$"):
        es.landscape.string(cnn(0), cnn(1), wrong, [batch()], points=3, epochs=1)


@pytest.mark.parametrize("ends", ENDS)
def test_on_a_common_support_both_nets_compute_what_they_did(ends):
    a, b = ENDS[ends]()
    ours, theirs = on_common_support(a, b)
    x = batch()[0]
    assert torch.allclose(ours(x), a(x), rtol=1e-10)
    assert torch.allclose(theirs(x), b(x), rtol=1e-10)
    if ends != "two cnns":
        for number in (0, 4):
            assert ours[number].linear.pattern == theirs[number].linear.pattern
            masks = [
                layer.linear.pattern.to_mask() for layer in (a[number], b[number]) if not isinstance(layer, nn.Conv2d)
            ]
            assert torch.equal(ours[number].linear.pattern.to_mask(), torch.stack(masks).any(0))
    if ends == "two supports":
        for net, same in ((a, ours), (b, theirs)):
            before, after = es.deviation(net), es.deviation(same)
            assert after.delta == pytest.approx(before.delta)
            assert after.untied == pytest.approx(before.untied)


def test_block_sparse_layers_of_any_pattern():
    draw = torch.Generator().manual_seed(0)
    a, b = (
        nn.Sequential(es.SparseLinear(10, 14, es.BlockPattern.random((14, 10), shape, 0.5, draw)))
        for shape in ((4, 6), (2, 4))
    )
    ours, theirs = on_common_support(a, b)
    assert torch.allclose(ours[0].weight, a[0].weight)
    assert torch.allclose(theirs[0].weight, b[0].weight)
    assert ours[0].pattern.block_shape == (2, 2)
    with pytest.raises(ValueError, match="in '0'"):
        on_common_support(a, nn.Sequential(nn.Linear(10, 14)))


def test_the_ends_stay_and_the_string_goes_down():
    a, b = cnn(0), efcn(es.Dilated(1), 1)
    data = batch()
    start = es.landscape.string(a, b, loss, [data], points=5, epochs=0)
    line = es.landscape.path(a, b, lambda net: loss(net, data), points=5, batches=[data[0]])
    assert line.losses[0] == pytest.approx(loss(start[0], data).item())
    nets = es.landscape.string(
        a, b, loss, [data], points=5, epochs=30, stiffness=0.01, optimizer=lambda p: torch.optim.SGD(p, lr=0.05)
    )
    for end, net in ((a, nets[0]), (b, nets[-1])):
        assert torch.allclose(net(data[0]), end(data[0]), rtol=1e-10)
    before, after = ([loss(net.train(), data).item() for net in some[1:-1]] for some in (start, nets))
    assert all(low < high for low, high in zip(after, before, strict=True))


def test_a_path_along_a_string():
    a, b = cnn(0), efcn(es.Dilated(1), 1)
    data = batch()
    found = es.landscape.path(
        a, b, lambda net: float(loss(net, data)), points=3, kind="string", loss=loss, batches=[data], epochs=5
    )
    assert found.losses[0] == pytest.approx(loss(a, data).item())
    assert found.losses[2] == pytest.approx(loss(b, data).item())
    with pytest.raises(ValueError, match="loss and batches must be given"):
        es.landscape.path(a, b, lambda net: 0.0, kind="string")


def test_springs_alone_pull_a_bent_string_straight():
    a, b = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    nets = es.landscape.string(
        a, b, lambda net, x: net(x).sum() * 0, [torch.zeros(1, 3, dtype=torch.float64)], points=[0, 0.1, 0.2, 1],
        epochs=300, optimizer=lambda p: torch.optim.SGD(p, lr=0.3),
    )  # fmt: skip
    for net, share in zip(nets, (0, 1 / 3, 2 / 3, 1), strict=True):
        assert torch.allclose(net.weight, torch.lerp(a.weight, b.weight, share), atol=1e-6)


def test_a_spring_reaches_weights_that_the_loss_does_not_use():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    net = es.landscape.string(
        a, b, lambda net, x: net.bias.sum() * 0, [0], points=[0, 0.9, 1], epochs=100,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.3),
    )[1]  # fmt: skip
    assert torch.allclose(net.weight, (a.weight + b.weight) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("frozen", "got"),
    [
        ((["weight"], []), r"\['weight'\]"),
        ((["weight"], ["bias"]), r"\['bias', 'weight'\]"),
        ((["weight", "bias"], ["weight", "bias"]), "none"),
    ],
)
def test_nets_that_train_other_parameters_or_none_are_refused(frozen, got):
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    for net, names in zip(nets, frozen, strict=True):
        for name in names:
            getattr(net, name).requires_grad_(False)
    with pytest.raises(ValueError, match=f"must train the same parameters, got {got}"):
        es.landscape.string(*nets, lambda net, x: net(x).sum(), [torch.ones(1, 3)])


def test_a_product_of_two_matrices_is_refused():
    with pytest.raises(ValueError, match="'0' must have weights one by one"):
        es.landscape.string(efcn(es.LowRank(1)), efcn(es.LowRank(1)), loss, [batch()])
