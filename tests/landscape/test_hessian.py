"""Products, eigenvalues and traces against the dense Hessian, whole and projected onto the parts of the weights."""

import copy
import itertools

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.landscape.nets import batch, efcn, loss
from tests.landscape.test_string import WRONG_LOSSES

PARTS = (None, "tied", "untied", "off_local")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    small = es.embed(small, batch()[0][:, :, :3, :3], layers={"*": dict(support=es.Dilated(1), block_shape=(3, 4))})
    small[0].linear.values.data.add_(0.3 * torch.randn(small[0].linear.values.shape, dtype=torch.float64))
    small[0].linear.bias.requires_grad_(False)  # a frozen parameter is no direction
    return small


def small_batch(seed):
    x, y = batch(seed)
    return x[:, :, :3, :3], y


def dense_hessian(net, data):
    parameters = [one for one in net.parameters() if one.requires_grad]
    gradient = torch.cat([one.flatten() for one in torch.autograd.grad(loss(net, data), parameters, create_graph=True)])
    rows = [torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True) for one in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def dense_projector(net, part):
    """The matrix of the projection, from the kernel entries that stored weights copy."""
    sizes = [one.numel() for one in net.parameters() if one.requires_grad]
    matrix = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    layer = net[0]
    start = next(
        begin
        for begin, one in zip(
            itertools.accumulate([0, *sizes]), (one for one in net.parameters() if one.requires_grad), strict=False
        )
        if one is layer.linear.values
    )
    entries = layer.ties.maps[layer.ties.class_of_block.long()].flatten()
    count = entries.numel()
    same = (entries[:, None] == entries[None]) & (entries >= 0)[:, None]
    tied = same.double() / same.sum(1).clamp(min=1)[:, None]
    local, off_local = torch.diag((entries >= 0).double()), torch.diag((entries == -1).double())
    matrix[start : start + count, start : start + count] = {
        "tied": tied, "untied": local - tied, "off_local": off_local,
    }[part]  # fmt: skip
    return matrix


def test_products_eigenvalues_and_traces_are_those_of_the_dense_matrix(net):
    data = [small_batch(1), small_batch(2)]
    dense = sum(dense_hessian(net, one) for one in data) / 2
    found = es.landscape.hessian(net, loss, data)
    for part in PARTS:
        projected = dense
        if part is not None:
            projector = dense_projector(net, part)
            projected = projector @ dense @ projector
        direction = torch.randn(found.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        product = found.product(found._split(direction), part)
        assert torch.allclose(found._joined(product), projected @ direction, rtol=1e-9, atol=1e-12)
        expected = torch.linalg.eigvalsh(projected)
        expected = expected[expected.abs().argsort(descending=True)][:3]
        assert torch.allclose(torch.tensor(found.top(3, part=part), dtype=torch.float64), expected, rtol=1e-6)
        part_of_it = direction if part is None else projector @ direction
        expected = part_of_it @ dense @ part_of_it / part_of_it.square().sum()
        assert found.along(found._split(direction), part) == pytest.approx(float(expected), rel=1e-9)
        size = found.size if part is None else round(float(projector.trace()))
        assert found.dimension(part) == size
        trace = found.trace(30, part=part)
        assert abs(trace.value - float(projected.trace())) < 4 * trace.standard_error + 1e-9


class Normed(nn.Module):
    """Weights of another norm than the stored ones, and a layer norm, whose forward mode torch 2.13 has wrong."""

    def __init__(self):
        super().__init__()
        self.pattern = es.BlockPattern.random((8, 18), (4, 3), 0.5, torch.Generator().manual_seed(1))
        self.values = nn.Parameter(torch.randn(self.pattern.values_shape, dtype=torch.float64))
        self.rest = nn.Sequential(nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x):
        return self.rest(es.spmm(x.flatten(1), self.values / self.values.norm(), self.pattern))


def penalized(net, data):
    """A loss that takes weights as they are, besides."""
    return loss(net, data) + 0.5 * net[0].linear.values.pow(4).sum()


@pytest.mark.parametrize("case", ["normed", "penalized"])
def test_products_where_the_gradient_of_stored_weights_is_not_the_kernel_s_alone(net, case):
    model, of = (Normed(), loss) if case == "normed" else (net, penalized)
    found = es.landscape.hessian(model, of, [small_batch(1)])
    values = list(found.parameters.values())
    gradient = torch.autograd.grad(of(model, small_batch(1)), values, create_graph=True)
    direction = found._split(torch.randn(found.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    expected = torch.autograd.grad(gradient, values, list(direction.values()))
    product = found.product(direction)
    for name, one in zip(found.parameters, expected, strict=True):
        assert torch.allclose(product[name], one, rtol=1e-9, atol=1e-12)


def test_gradients_are_read_again_after_an_error(net):
    def gradient(net):
        return torch.autograd.grad(loss(net, small_batch(1)), net[0].linear.values, create_graph=True)[0]

    before = gradient(net)
    net = copy.deepcopy(net)
    net[2].register_full_backward_hook(lambda *_: 1 / 0)
    found = es.landscape.hessian(net, loss, [small_batch(1)])
    with pytest.raises(ZeroDivisionError):
        found.product({name: torch.ones_like(value) for name, value in found.parameters.items()})
    net[2]._backward_hooks.clear()
    assert torch.equal(gradient(net), before)
    assert before.any()


def test_hooks_of_stored_weights_see_their_gradient(net):
    net = copy.deepcopy(net)
    seen = []
    net[0].linear.values.register_hook(lambda gradient: seen.append(gradient.detach().clone()))
    found = es.landscape.hessian(net, loss, [small_batch(1)])
    found.product({name: torch.ones_like(value) for name, value in found.parameters.items()})
    assert torch.equal(seen[0], torch.autograd.grad(loss(net, small_batch(1)), net[0].linear.values)[0])


def test_a_frozen_parameter_may_have_a_direction(net):
    found = es.landscape.hessian(net, loss, [small_batch(1)])
    way = {name: torch.ones_like(value) for name, value in net.named_parameters()}
    assert found.along(way) == found.along({name: way[name] for name in found.parameters})


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (float("nan"), float("nan"))])
def test_eigenvalues_of_a_flat_loss_and_of_one_that_is_not_finite(value, expected):
    net = nn.Linear(3, 2)
    found = es.landscape.hessian(net, lambda net, x: value * net(x).square().sum(), [torch.randn(4, 3)]).top(2)
    assert str(found) == str([expected] * 2)


def test_eigenvalues_of_a_net_in_bfloat16():
    net = nn.Linear(3, 1, bias=False).bfloat16()
    data = [torch.diag(torch.tensor([1.0, 2.0, 3.0])).bfloat16()]
    assert es.landscape.hessian(net, lambda net, x: net(x).square().sum() / 2, data).top(1) == pytest.approx(
        [9], rel=0.02
    )


def test_the_model_is_left_as_it_was():
    net = efcn(es.Local()).train()
    net[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    es.landscape.hessian(net, loss, [batch()]).trace(2)
    assert [module.training for module in net[:4]] == [True, True, False, True]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert all(one.grad is None for one in net.parameters())


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature():
    net = torch.nn.Linear(3, 2)
    assert es.landscape.hessian(net, lambda net, x: net(x).sum(), [torch.randn(4, 3)]).trace(2).value == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: es.landscape.hessian(net, loss, []), "data must hold"),
        (lambda net: es.landscape.hessian(net.requires_grad_(False), loss, [1]), "must have a trainable parameter"),
        *(
            (
                lambda net, wrong=wrong: es.landscape.hessian(net, wrong, [batch()]).trace(1),
                f"^loss must {told}$",
            )
            for wrong, told in WRONG_LOSSES
        ),
        (lambda net: es.landscape.hessian(net, loss, [batch()]).top(10**9), r"k must lie in \[1, "),
        (lambda net: es.landscape.hessian(net, loss, [batch()]).trace(2, part="local"), "part must be one of"),
        (lambda net: es.landscape.hessian(efcn(es.LowRank(1)), loss, [batch()]).trace(2, part="tied"), "a product"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(efcn(es.Local()))
