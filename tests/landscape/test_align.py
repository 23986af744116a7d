"""Channels in another order: the same function, and the order that is known."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import efcn_sparse as es
from tests.landscape.nets import batch, cnn, efcn, loss

FIRST, SECOND = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])


def units(pixels, order):
    return (torch.arange(pixels)[:, None] * len(order) + order).flatten()


@torch.no_grad()
def in_another_order(net):
    """The net with the channels of its convolutions in the orders FIRST and SECOND, by its dense matrices."""
    other = copy.deepcopy(net)
    for number, (sides, pixels) in {0: ((torch.arange(2), FIRST), (36, 36)), 4: ((FIRST, SECOND), (9, 4))}.items():
        layer = other[number]
        if isinstance(layer, nn.Conv2d):
            layer.weight.copy_(layer.weight[sides[1]][:, sides[0]])
            layer.bias.copy_(layer.bias[sides[1]])
            continue
        rows, cols = units(pixels[1], sides[1]), units(pixels[0], sides[0])
        layer.linear.values.copy_(layer.linear.pattern.gather(layer.linear.weight[rows][:, cols]))
        layer.linear.bias.copy_(layer.linear.bias[rows])
    for tensor in (other[1].weight, other[1].bias, other[1].running_mean, other[1].running_var):
        tensor.copy_(tensor[FIRST])
    other[7].weight.copy_(other[7].weight.view(3, 4, 4)[:, SECOND].reshape(3, 16))
    return other


NETS = {
    "cnn": lambda: cnn(0),
    "ragged blocks": lambda: efcn(es.Dilated(1), 0, block_shape=(5, 7)),
    "full": lambda: efcn(es.Full(), 0),
}


@pytest.mark.parametrize("net", NETS)
def test_the_order_is_found_and_nothing_separates_the_nets_any_more(net):
    a = NETS[net]()
    b = in_another_order(a)
    x = batch()[0]
    assert torch.allclose(b(x), a(x), rtol=1e-10)
    assert not torch.allclose(b[7].weight, a[7].weight)
    aligned = es.landscape.align(a, b, x)
    for (name, found), expected in zip(aligned.state_dict().items(), a.state_dict().values(), strict=True):
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            kept = slice(None)
            if name.endswith("linear.values"):
                support = aligned[int(name[0])].linear.pattern.support_of_blocks()
                kept = slice(None) if support is None else support
            assert torch.allclose(found[kept], expected[kept], rtol=1e-12), name
    for end, same in ((b, False), (aligned, True)):
        way = es.landscape.path(a, end, lambda net: float(loss(net, batch())), batches=[x], points=5)
        inner = way.losses[1:-1]  # where statistics are those of the batch
        assert (max(inner) - min(inner) < 1e-9) == same


def test_an_efcn_is_aligned_with_a_cnn():
    a, b = cnn(0), in_another_order(efcn(es.Dilated(1), 0, away=0.02))
    assert torch.allclose(
        es.landscape.align(a, b, batch()[0])[7].weight, efcn(es.Dilated(1), 0, away=0.02)[7].weight, rtol=1e-12
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 1, groups=2)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        y = torch.relu(self.second(y) + y)
        return self.head(torch.tanh(self.hidden(self.depthwise(y).mean((2, 3)))))


def test_sums_join_channels_and_units_of_linear_layers_move_too():
    torch.manual_seed(0)
    a, b, x = Residual().double(), Residual().double(), batch()[0]
    aligned = es.landscape.align(a, b, x)
    assert torch.allclose(aligned(x), b(x), rtol=1e-10)
    assert torch.equal(aligned.second.weight, b.second.weight)  # read by a grouped convolution
    assert not torch.equal(aligned.hidden.weight, b.hidden.weight)

    def closeness(net):
        pairs = zip(a.parameters(), net.parameters(), strict=True)
        return float(sum((one * other).detach().sum() for one, other in pairs))

    assert closeness(aligned) > closeness(b)
    again = es.landscape.align(b, aligned, x)
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), b.parameters(), strict=True))


class Turned(nn.Sequential):
    def forward(self, x):
        return self[1](torch.relu(self[0](x)))  # the linear layer reads columns of pixels, not channels


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (nn.Linear(3, 3), nn.Linear(3, 3), "b must have channels"),
        (
            efcn(es.Grown(1.5), 0, block_shape=(2, 2)),
            efcn(es.Grown(1.5), 1, block_shape=(2, 2)),
            "the support of '[04]' must be the same for all channels",
        ),
        (cnn(0), nn.Sequential(*cnn(1)[:7], nn.Linear(16, 2).double()), r"in '7"),
        (nn.Sequential(Branching(6, 6)), nn.Sequential(Branching(6, 6)), "b must be a net that torch.fx can trace"),
        (
            Turned(nn.Conv2d(2, 6, 1), nn.Linear(6, 2)).double(),
            Turned(nn.Conv2d(2, 6, 1), nn.Linear(6, 2)).double(),
            "b must compute the same",
        ),
    ],
)
def test_what_cannot_be_aligned_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        es.landscape.align(a, b, batch()[0])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = weight_norm(nn.Conv2d(2, 4, 3)), nn.Conv2d(4, 2, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(torch.relu(self.conv(x)))


def test_nets_stay_as_they_are_and_weight_norm_counts_as_what_it_computes():
    net, x = Counting(), torch.randn(2, 2, 8, 8)
    twin = es.embed(net, x)
    aligned = es.landscape.align(net, twin, x)
    assert [int(one.calls) for one in (net, twin, aligned)] == [0, 0, 0]
    torch.testing.assert_close(aligned(x), net(x))
