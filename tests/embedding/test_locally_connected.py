"""Locally connected layers against a product for each output position, written out."""

import copy
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import efcn_sparse as es
from efcn_sparse.measure.memory import apart

KINDS = (es.LocallyConnected1d, es.LocallyConnected2d, es.LocallyConnected3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SETTINGS = {  # in, out, input size, kernel, and the rest
    "1d": (4, 6, (9,), (3,), dict(stride=2, padding=1)),
    "2d": (3, 5, (7, 6), (3, 2), dict(stride=(2, 1), padding=(1, 0))),
    "blocks": (16, 32, (5, 5), (3, 3), dict(padding=1)),
    "groups and dilation": (4, 6, (8, 7), (2, 3), dict(groups=2, dilation=(2, 1))),
    "same": (3, 4, (6, 5), (4, 3), dict(padding="same")),
    "same with a stride": (3, 4, (7, 6), (3, 2), dict(padding="same", stride=(3, 2))),
    "pairs": (2, 3, (5, 6), (3, 3), dict(padding=((0, 2), (1, 0)), bias=False)),
    "3d": (2, 3, (4, 3, 5), (2, 2, 3), dict(stride=(1, 1, 2), padding=1)),
}


def make(setting):
    channels, out, size, kernel, rest = SETTINGS[setting]
    torch.manual_seed(0)
    return KINDS[len(size) - 1](channels, out, size, kernel, **rest, dtype=torch.float64)


def written_out(x, weight, bias, layer):
    """The sum over the patch of each position, for each group."""
    g = layer.geometry
    x = functional.pad(x, [side for pair in reversed(g.padding) for side in pair])
    y = x.new_zeros(x.shape[0], g.out_channels, *g.output_size)
    for at in itertools.product(*map(range, g.output_size)):
        window = tuple(
            slice(p * stride, p * stride + dilation * (kernel - 1) + 1, dilation)
            for p, stride, dilation, kernel in zip(at, g.stride, g.dilation, g.kernel_size, strict=True)
        )
        patch = x[(slice(None), slice(None), *window)].reshape(x.shape[0], g.groups, -1)
        kernel = weight[at].reshape(g.groups, g.out_channels // g.groups, -1)
        y[(slice(None), slice(None), *at)] = torch.einsum("ngk,gok->ngo", patch, kernel).flatten(1)
    return y if bias is None else y + bias.view(*g.output_size, g.out_channels).movedim(-1, 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_position_has_its_own_kernel(setting):
    layer = make(setting)
    g = layer.geometry
    weight = torch.randn(*g.output_size, *g.kernel_shape, dtype=torch.float64)
    layer.load_weight(weight)
    x = torch.randn(3, g.in_channels, *g.input_size, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    kernel = weight.clone().requires_grad_()
    y, expected = layer(x), written_out(twin, kernel, layer.linear.bias, layer)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    assert torch.allclose(x.grad, twin.grad, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        layer.linear.values.copy_(layer.linear.values.grad)
    assert torch.allclose(layer.weight, kernel.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_weights_are_written_as_they_are_read(setting):
    layer = make(setting)
    weight, values = layer.weight, layer.linear.values.detach().clone()
    with torch.no_grad():
        layer.linear.values.fill_(7.0)
    layer.load_weight(torch.where(weight == 0, 5.0, weight))  # what meets padding does not count
    support = layer.linear.pattern.support_of_blocks()
    assert torch.equal(layer.linear.values, values if support is None else values.masked_fill(~support, 0))
    assert torch.equal(layer.weight, weight)
    assert int((weight != 0).sum()) == layer.geometry.local_weights


@pytest.mark.parametrize(
    ("dims", "rest"), [(1, dict(padding="same")), (2, dict(groups=2, stride=2)), (3, dict(bias=False))]
)
def test_a_convolution_at_every_position(dims, rest):
    conv = CONVOLUTIONS[dims - 1](4, 6, 3, **rest).double()
    layer = KINDS[dims - 1].from_conv(conv, (6, 5, 4)[:dims])
    x = torch.randn(2, 4, *(6, 5, 4)[:dims], dtype=torch.float64)
    assert type(layer) is KINDS[dims - 1]
    assert torch.allclose(layer(x), conv(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.to_conv().weight, conv.weight)
    assert es.deviation(layer).untied == 0.0
    if dims == 2:
        assert torch.equal(layer.weight[1, 1], conv.weight)


def test_initial_weights_follow_the_fan_in_of_each_unit():
    torch.manual_seed(0)
    layer = es.LocallyConnected2d(32, 64, 4, 3, padding=1)
    weight = layer.weight
    for at, taps in (((0, 0), 4), ((0, 1), 6), ((1, 2), 9)):
        bound = 1 / math.sqrt(32 * taps)
        drawn = weight[at][weight[at] != 0]
        assert len(drawn) == 64 * 32 * taps
        assert float(drawn.abs().max()) <= bound
        assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(layer.linear.bias.detach().abs().max()) <= 1 / math.sqrt(32 * 4)


def test_a_layer_of_ones_own_is_no_embedded_convolution():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), es.LocallyConnected2d(4, 4, 8, 3, padding=1), nn.Conv2d(4, 2, 3))
    back = es.unembed(es.embed(net, x))
    assert [type(module) for module in back] == [type(module) for module in net]
    for mine, its in zip(back.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, its)
    with pytest.raises(ValueError, match="must hold an embedded convolution"):
        es.unembed(net[1])


@pytest.mark.parametrize(
    "write", [nn.init.zeros_, lambda w: w.copy_(w), lambda w: w.data.zero_(), lambda w: w[0].zero_()]
)
def test_writing_into_the_kernels_is_refused(write):
    layer = es.LocallyConnected2d(3, 4, 5, 3)
    with pytest.raises(RuntimeError, match="LocallyConnected layer has load_weight"):
        write(layer.weight)
    layer.load_weight(layer.weight.clone().mul_(0))
    assert not layer.linear.values.any()


def test_biases_are_loaded_by_position():
    layer = es.LocallyConnected2d(1, 2, 3, 1)
    bias = torch.randn(3, 3, 2)
    layer.load_weight(torch.zeros_like(layer.weight), bias)
    assert torch.allclose(layer(torch.randn(1, 1, 3, 3))[0], bias.movedim(-1, 0))


def test_it_trains_is_copied_and_comes_back_from_a_state_dict():
    layer = es.LocallyConnected2d(3, 4, 5, 3)
    twin = copy.deepcopy(layer)
    x = torch.randn(6, 3, 5, 5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    before = layer(x).square().mean()
    before.backward()
    optimizer.step()
    assert layer(x).square().mean() < before
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: es.LocallyConnected2d(3, 4, (5, 5, 5), 3), "input_size must be an integer or 2 of them"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3, 0, "same"), "stride must be 2 integers of at least 1"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3, groups=2), "groups must divide the channels 3 and 4, got 2"),
        (lambda: es.LocallyConnected2d(3, 4, 2, 3), "must fit into the padded input_size"),
        (lambda: es.LocallyConnected1d(3, 4, 5, 3, padding="full"), "padding must be 'same', 'valid' or numbers"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3, padding=(1, 2, 3)), "padding must be an integer, 2 of them"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3.5), "^kernel_size must be an integer or 2 of them, got 3.5$"),
        (
            lambda: es.LocallyConnected2d(3, 4, 5, torch.tensor(3)),
            "^kernel_size must be an integer or 2 of them, got t",
        ),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3, stride=None), "^stride must be an integer or 2 of them, got None$"),
        (lambda: es.LocallyConnected2d(3, 4, None, 3), "^input_size must be an integer or 2 of them, got None$"),
        *(
            (
                lambda padding=padding: es.LocallyConnected2d(3, 4, 5, 3, padding=padding),
                re.escape(f"padding must be an integer, 2 of them, or 2 pairs (before, after), got {padding!r}"),
            )
            for padding in (1.5, None, (1, 1.5), ((1, 2), (1, "a")))
        ),
        (lambda: es.LocallyConnected2d(3.0, 4, 5, 3), r"^in_channels must be an integer, got 3\.0$"),
        (lambda: es.LocallyConnected2d(3, None, 5, 3), "^out_channels must be an integer, got None$"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3, groups=1.0), r"^groups must be an integer, got 1\.0$"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3)(torch.zeros(1, 3, 6, 5)), r"input must be \[N, 3, 5, 5\]"),
        (lambda: es.LocallyConnected2d(3, 4, 5, 3).load_weight(torch.zeros(2)), r"weight must be \[3, 3, 4, 3, 3, 3\]"),
        (
            lambda: es.LocallyConnected1d(1, 1, 2, 1, bias=False).load_weight(
                torch.zeros(2, 1, 1, 1), torch.zeros(2, 1)
            ),
            "bias must be None",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_of_numpy_are_integers():
    one = es.LocallyConnected2d(np.int64(1), 2, np.int64(5), (np.int64(3), 3), padding=np.int64(1))
    assert one.geometry == es.LocallyConnected2d(1, 2, 5, 3, padding=1).geometry


@pytest.mark.parametrize(("name", "weight", "bias"), [("weight", 5, None), ("weight", [1.0], None), ("bias", None, 5)])
def test_what_is_loaded_is_a_tensor(name, weight, bias):
    layer = es.LocallyConnected2d(1, 2, 3, 1)
    with pytest.raises(TypeError, match=f"^{name} must be a tensor, got {'list' if weight == [1.0] else 'int'}$"):
        layer.load_weight(layer.weight if weight is None else weight, bias)


def test_another_kind_of_convolution_is_refused():
    with pytest.raises(TypeError, match="conv must be a Conv2d, got Conv1d"):
        es.LocallyConnected2d.from_conv(nn.Conv1d(1, 1, 1), (3, 3))


def test_weights_are_loaded_in_little_memory():
    grown = [int(number) for number in apart("tests.embedding.loaded_weights")]
    weights, load, read = grown
    assert load < weights / 2, f"{load} bytes on top to load {weights}"
    assert read < 1.5 * weights, f"{read} bytes to read {weights}"
