"""MaxPool2d, alone and as it does the work of the ReLU before it: torch's numbers, from a byte for each output."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad as fwAD

import efcn_sparse as es
from tests.activation.saved import compiled, held_bytes

WINDOWS = {
    "overlapping": dict(kernel_size=3, stride=2),
    "apart": dict(kernel_size=2),
    "padded": dict(kernel_size=3, stride=1, padding=1),
    "rectangular": dict(kernel_size=(2, 3), stride=(3, 1), padding=(1, 0)),
    "dilated": dict(kernel_size=3, stride=2, padding=1, dilation=2),
    "ceil": dict(kernel_size=3, stride=2, ceil_mode=True),
    "ceil and padded": dict(kernel_size=(3, 2), stride=3, padding=1, ceil_mode=True),
    "gaps": dict(kernel_size=2, stride=4),
    "far apart": dict(kernel_size=2, stride=10**6),
    "large": dict(kernel_size=(16, 16), stride=1, padding=8),
    "as large as bytes hold": dict(kernel_size=(15, 17), stride=1, padding=7),
}


ALONE = (es.MaxPool2d, nn.MaxPool2d)


def after_relu(container, relu, pool):
    return lambda *args, **window: container(relu(), pool(*args, **window))


AFTER_RELU = (after_relu(es.Sequential, es.ReLU, es.MaxPool2d), after_relu(nn.Sequential, nn.ReLU, nn.MaxPool2d))


@pytest.fixture(params=[ALONE, AFTER_RELU], ids=["alone", "after ReLU"])
def kinds(request):
    return request.param


def both(window, x, use, kinds=ALONE):
    """What ``use(pool, leaf)`` returns of our pooling and of torch's, and the gradients of x."""
    found = []
    for kind in kinds:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        found.append([*(one.detach() for one in use(kind(**window), leaf)), leaf.grad])
    return found


def same(found):
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert ours.is_contiguous(memory_format=torch.channels_last) == theirs.is_contiguous(
            memory_format=torch.channels_last
        )


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def trained(pool, leaf):
    y = pool(leaf * 1)
    (y * torch.arange(1, 1 + y.numel(), dtype=y.dtype).view_as(y).sin()).sum().backward()
    return [y]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS))
def test_it_is_torchs(window, dtype, kinds):
    same(both(window, images(2, 70, 9, 10, dtype=dtype), trained, kinds))  # 64 channels at a time, and 6 more


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (3, 2, 3, 40), (2, 130, 17, 5), (0, 4, 5, 5)])
def test_sizes(shape):
    same(both(WINDOWS["overlapping"], images(*shape), trained))


def test_a_window_of_nothing_but_padding(kinds):
    window, x = dict(kernel_size=2, stride=1, padding=1, dilation=2), images(1, 3, 1, 4)
    expected = torch.full((1, 3, 1, 4), -torch.inf)
    for given in (x.clone().requires_grad_(), x, x.contiguous()):
        assert torch.equal(kinds[0](**window)(given), expected)
        assert torch.equal(kinds[1](**window)(given.detach()), expected)


@compiled
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_window_of_nothing_but_padding_has_no_gradient(create_graph):  # of torch's, it is written past the image
    x = images(1, 3, 1, 4).requires_grad_()
    y = es.MaxPool2d(2, stride=1, padding=1, dilation=2)(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=create_graph)
    assert not gradient.any()


@pytest.mark.parametrize("sides", [(16, 16), (15, 17)])
def test_windows_in_which_little_is_positive(sides, kinds):
    x = images(2, 3, 20, 20) - 3
    same(both(dict(kernel_size=sides, stride=1, padding=7), x, trained, kinds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_numbers_infinities_and_nans(dtype, kinds):
    x = torch.randint(-1, 2, (3, 64, 9, 9)).to(dtype)
    x[0, :, 2:5, 2:5] = torch.nan
    x[1] = -torch.inf
    x[2, :, 3, 3] = torch.inf
    for window in (WINDOWS["overlapping"], WINDOWS["padded"]):
        same(both(window, x.contiguous(memory_format=torch.channels_last), trained, kinds))


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.randn(2, 4, 7, 7), id="channels first"),
        pytest.param(torch.randn(4, 7, 7), id="no batch"),
        pytest.param(images(2, 4, 7, 7, dtype=torch.float16), id="float16"),
    ],
)
def test_what_is_left_to_torch(x, kinds):
    same(both(WINDOWS["overlapping"], x, trained, kinds))


def test_indices_are_torchs():
    x = images(2, 4, 7, 7)
    ours, theirs = (kind(3, 2, return_indices=True)(x) for kind in (es.MaxPool2d, nn.MaxPool2d))
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("window", [WINDOWS["overlapping"], WINDOWS["rectangular"], WINDOWS["dilated"]])
def test_second_derivatives(window, kinds):
    def use(pool, leaf):
        y = pool(leaf.square() - 1)
        (first,) = torch.autograd.grad(y.exp().sum(), leaf, create_graph=True)
        first.square().sum().backward()
        return [first]

    found = both(window, images(2, 5, 9, 8, dtype=torch.float64), use, kinds)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_transforms_and_graphs(kinds):
    x, pools = images(2, 4, 7, 7), [kind(3, 2) for kind in kinds]
    gradients = [torch.func.grad(lambda x, pool=pool: pool(x).square().sum())(x) for pool in pools]
    assert torch.equal(*gradients)
    compiled = torch.compile(pools[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x.requires_grad_()), pools[1](x))


@pytest.mark.parametrize("window", [WINDOWS["overlapping"], WINDOWS["dilated"]])
@pytest.mark.parametrize("laid_out", [images, torch.randn])
def test_without_gradients(window, laid_out, kinds):
    x = laid_out(2, 5, 9, 8)
    x[0, 0, 4, 4] = torch.nan
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(kinds[0](**window)(x), kinds[1](**window)(x), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_holds_a_byte_for_each_output(dtype):
    x = images(2, 4, 7, 7, dtype=dtype).requires_grad_()
    assert held_bytes(lambda: es.MaxPool2d(3, 2)(x)) == 2 * 4 * 3 * 3


@pytest.mark.parametrize(
    "window",
    [
        dict(kernel_size=2, stride=[]),
        dict(kernel_size=(3,), stride=(2,)),
        dict(kernel_size=3, padding=(1,), dilation=(2,)),
    ],
)
def test_lists_of_one_or_no_number(window):
    same(both(window, images(2, 8, 9, 9), trained))


def test_tangents_of_a_gradient_pass(kinds):
    tangents = []
    x = images(1, 2, 5, 5)
    for kind in kinds:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = kind(3, 2)(leaf)
        with fwAD.dual_level():
            (gradient,) = torch.autograd.grad(y, leaf, fwAD.make_dual(torch.ones_like(y), 2 * torch.ones_like(y)))
            tangents.append(fwAD.unpack_dual(gradient).tangent)
    assert torch.equal(*tangents)


def test_many_gradients_at_once(kinds):
    x, found = images(1, 2, 5, 5), []
    for kind in kinds:
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = kind(3, 2)(leaf)
        dy = torch.eye(y.numel()).view(-1, *y.shape)
        found += torch.autograd.grad(y, leaf, dy, is_grads_batched=True)
    assert torch.equal(*found)


@pytest.mark.parametrize("window", [dict(kernel_size=2, stride=0), dict(kernel_size=2, padding=2), dict(kernel_size=9)])
def test_errors_are_torchs(window):
    messages = []
    for kind in (es.MaxPool2d, nn.MaxPool2d):
        with pytest.raises(RuntimeError) as raised:
            kind(**window)(images(1, 2, 5, 5).requires_grad_())
        messages.append(str(raised.value).splitlines()[0])
    assert messages[0] == messages[1]
