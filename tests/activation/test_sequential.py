"""Sequential: what stands between ReLU and max-pooling is not written, unless somebody may look at it."""

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.activation.saved import compiled, held_bytes


def images(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()


@compiled
def test_it_holds_a_byte_for_each_output_and_nothing_of_relu():
    x = images(2, 4, 7, 7)
    assert held_bytes(lambda: es.Sequential(es.ReLU(), es.MaxPool2d(3, 2))(x)) == 2 * 4 * 3 * 3


@pytest.mark.parametrize("inplace", [False, True])
def test_the_input_is_written_to_where_torchs_is(inplace):
    y = images(2, 4, 7, 7) * 1
    before = y.detach().clone()
    es.Sequential(es.ReLU(inplace), es.MaxPool2d(3, 2))(y)
    assert torch.equal(y, before.relu() if inplace else before)


class ReadTwice(nn.Module):
    """Reads again what a container got, which writes over it."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2))

    def forward(self, x):
        y = self.conv(x)
        return self.pool(y).mean() + y.mean()


def test_an_embedded_net_that_reads_again_what_was_written_over():
    cnn, x = ReadTwice(), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(es.embed(cnn, x)(x), cnn(x))


def seen_by(module, look):
    """What ``look(module, keep)`` makes it keep, in a forward and a backward pass of its net."""
    kept = []
    net = es.Sequential(es.ReLU(), es.MaxPool2d(2))
    look(net[module], kept.append)
    x = images(1, 2, 4, 4)
    net(x).sum().backward()
    return kept, x


@pytest.mark.parametrize(
    ("module", "look"),
    [
        (0, lambda relu, keep: relu.register_forward_hook(lambda module, args, y: keep(y))),
        (1, lambda pool, keep: pool.register_forward_pre_hook(lambda module, args: keep(args[0]))),
        (1, lambda pool, keep: pool.register_forward_hook(lambda module, args, y: keep(args[0]))),
    ],
)
def test_hooks_see_what_relu_returns(module, look):
    (seen,), x = seen_by(module, look)
    assert torch.equal(seen, x.relu())


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("module", [0, 1])
def test_backward_hooks_run(module, kind):
    seen, _ = seen_by(module, lambda watched, keep: getattr(watched, kind)(lambda *arguments: keep(1)))
    assert seen == [1]


def test_hooks_on_all_modules_see_both():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append(type(module)))
    try:
        es.Sequential(es.ReLU(), es.MaxPool2d(2))(images(1, 2, 4, 4))
    finally:
        handle.remove()
    assert seen == [es.ReLU, es.MaxPool2d, es.Sequential]


def test_a_forward_of_ones_own_is_called():
    net = es.Sequential(es.ReLU(), es.MaxPool2d(2))
    net[0].forward = lambda input: input.square() + 3
    x = images(1, 2, 4, 4)
    torch.testing.assert_close(net(x), nn.functional.max_pool2d(x.square() + 3, 2))


@pytest.mark.parametrize(
    "modules",
    [
        [nn.ReLU(), es.MaxPool2d(2)],
        [es.ReLU(), nn.MaxPool2d(2)],
        [es.ReLU(), nn.Tanh(), es.MaxPool2d(2)],
        [es.MaxPool2d(2), es.ReLU()],
        [es.ReLU(), es.MaxPool2d(2), es.ReLU(), es.MaxPool2d(2), es.ReLU()],
        [es.ReLU()],
        [],
    ],
    ids=lambda modules: " ".join(type(module).__name__ for module in modules),
)
def test_any_order_of_modules(modules):
    gradients = []
    for container in (es.Sequential, nn.Sequential):
        x = images(2, 3, 8, 8) if not gradients else gradients[0][0].detach().clone().requires_grad_()
        y = container(*modules)(x * 1)
        y.square().sum().backward()
        gradients.append((x, y, x.grad))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_no_tensor_passes():
    assert es.Sequential(nn.Identity())((1, "two")) == (1, "two")


def test_embed_puts_it_in_and_unembed_takes_it_out():
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.randn(2, 1, 8, 8)
    twin = es.embed(cnn, x)
    assert [type(twin), type(twin[1])] == [es.Sequential, es.Sequential]
    torch.testing.assert_close(twin(x), cnn(x))
    back = es.unembed(twin)
    assert str(back) == str(cnn)
    assert [type(back), type(back[1])] == [nn.Sequential, nn.Sequential]


class CalledTwice(nn.Module):
    """As in torchvision's ResNets: one ReLU, at two places."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.relu(self.conv(self.relu(self.conv(x)))))


def test_each_call_is_a_node_of_a_traced_graph():
    """So that those who ask a graph for the outputs of a module find each, as with torch's modules."""
    cnn, x = CalledTwice(), images(2, 3, 6, 6)
    twin = es.embed(cnn, x.detach())
    nodes = [[(node.op, node.target) for node in torch.fx.symbolic_trace(model).graph.nodes] for model in (cnn, twin)]
    assert nodes[1] == nodes[0]
    assert nodes[0][1:-1] == [("call_module", name) for name in ("conv", "relu", "conv", "relu", "pool")]
    assert torch.equal(torch.fx.symbolic_trace(twin)(x), twin(x))
    for alone in (es.ReLU(), es.MaxPool2d(2)):  # the traced model itself
        assert torch.equal(torch.fx.symbolic_trace(alone)(x), alone(x))


def test_slices_and_traces():
    net = es.Sequential(nn.Conv2d(2, 3, 3), es.ReLU(), es.MaxPool2d(2))
    x = images(1, 2, 6, 6)
    assert type(net[1:]) is es.Sequential
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))
    assert torch.equal(torch.export.export(net, (x.detach(),)).module()(x.detach()), net(x))
