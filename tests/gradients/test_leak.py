"""The leak of a model's layers, while it trains in the ordinary way or fused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.growth.cases import support

X, TARGET = torch.randn(11, 45, generator=torch.Generator().manual_seed(3)), torch.arange(11) % 5


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    first = es.BlockPattern.from_mask(torch.rand((70, 45), generator=generator) < 0.3, (8, 4))
    second = es.BlockPattern.random((33, 70), (16, 16), 0.5, generator)
    return nn.Sequential(
        es.SparseLinear(45, 70, first), nn.Tanh(), es.SparseLinear(70, 33, second), nn.Tanh(), nn.Linear(33, 5)
    )


def loss_of(model: nn.Module) -> torch.Tensor:
    return 10 * nn.functional.cross_entropy(model(X), TARGET)


def dense_parts(model: nn.Sequential, backward=lambda m: loss_of(m).backward()) -> dict[str, tuple[float, float]]:
    """Norms outside and inside the support, from the same net with dense layers."""
    dense = nn.Sequential(*(m.to_linear() if isinstance(m, es.SparseLinear) else copy.deepcopy(m) for m in model))
    backward(dense)
    parts = {}
    for name, module in model.named_children():
        if isinstance(module, es.SparseLinear):
            gradient, inside = dense[int(name)].weight.grad.double(), support(module.pattern)
            parts[name] = (float(gradient[~inside].norm()), float(gradient[inside].norm()))
    return parts


def check(leak: es.gradients.Leak, expected: dict[str, tuple[float, float]]) -> None:
    assert list(leak.layers) == list(expected)
    for name, (outside, inside) in expected.items():
        layer = leak.layers[name]
        assert layer.outside == pytest.approx(outside, rel=1e-5)
        assert layer.inside == pytest.approx(inside, rel=1e-5)
        assert layer.share == pytest.approx(outside**2 / (outside**2 + inside**2), rel=1e-5)
        assert outside > 0
    assert leak.outside == pytest.approx(math.hypot(*(o for o, _ in expected.values())), rel=1e-5)
    assert leak.inside == pytest.approx(math.hypot(*(i for _, i in expected.values())), rel=1e-5)
    assert leak.share == pytest.approx(leak.outside**2 / (leak.outside**2 + leak.inside**2), rel=1e-12)


def test_against_dense() -> None:
    model = net()
    with es.record_leak(model) as leak:
        loss_of(model).backward()
    check(leak, dense_parts(model))
    assert leak.layers["0"].inside == pytest.approx(float(model[0].values.grad.norm()), rel=1e-5)


def test_a_small_leak() -> None:
    """In fp32 the share is good to 1e-7; where that is not enough, ``precise`` is good to 1e-15."""
    p = es.BlockPattern.from_mask(torch.tensor([[True, False]]), (64, 64), shape=(64, 128))
    torch.manual_seed(0)
    layer, x = es.SparseLinear(128, 64, p), torch.randn(30, 128)
    x[:, 64:] *= 1e-5
    share = {}
    for precise in (False, True):
        with es.record_leak(layer, precise=precise) as leak:
            layer(x).square().sum().backward()
        share[precise] = leak.share
    with es.record_factors(layer) as factors:
        layer(x).square().sum().backward()
    gradient = (factors[""].dy.double().T @ factors[""].x.double()).square()
    expected = float(gradient[:, 64:].sum() / gradient.sum())
    assert 1e-11 < expected < 1e-9
    assert share[True] == pytest.approx(expected, rel=1e-4)
    assert share[False] == pytest.approx(expected, abs=1e-7)


def test_training_is_not_changed() -> None:
    watched, plain = net(), net()
    with es.record_leak(watched):
        loss_of(watched).backward()
    loss_of(plain).backward()
    for mine, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert all(not module._forward_hooks for module in watched.modules())


@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_with_a_fused_optimizer(max_norm: float | None) -> None:
    watched, plain = net(), net()
    expected = dense_parts(watched)
    for model in (watched, plain):
        optimizer = es.FusedOptimizer(model, lambda p: torch.optim.SGD(p, lr=0.1), max_norm=max_norm)
        if model is watched:
            with es.record_leak(model) as leak, optimizer.updating():
                loss_of(model).backward()
        else:
            with optimizer.updating():
                loss_of(model).backward()
        optimizer.step()
    check(leak, expected)
    assert torch.equal(watched[0].values, plain[0].values)


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.tanh(self.inner(x)))


def test_a_layer_that_is_used_twice() -> None:
    p = es.BlockPattern.random((24, 24), (8, 8), 0.4, torch.Generator().manual_seed(0))
    layer, x = es.SparseLinear(24, 24, p), torch.randn(5, 24)
    model, dense = Twice(layer), Twice(layer.to_linear())
    with es.record_leak(model) as leak:
        model(x).square().sum().backward()
    dense(x).square().sum().backward()
    outside = dense.inner.weight.grad[~support(p)].norm()
    assert leak.layers["inner"].outside == pytest.approx(float(outside), rel=1e-5)


def test_a_second_backward_pass_is_refused() -> None:
    model = net()
    with es.record_leak(model):
        loss_of(model).backward()
        again = loss_of(model)
        with pytest.raises(RuntimeError, match="2: must get one gradient within record_leak, got a second one"):
            again.backward()
    assert all(not module._forward_hooks for module in model.modules())


def test_forward_outside_is_refused() -> None:
    model = net()
    loss = loss_of(model)
    message = "record_leak must hold the forward and the backward pass, got no gradient of a SparseLinear"
    with pytest.raises(RuntimeError, match=message), es.record_leak(model):
        loss.backward()


def test_errors_inside_come_through() -> None:
    with pytest.raises(KeyError), es.record_leak(net()):
        raise KeyError("mine")


def test_backward_after_the_end_is_not_recorded() -> None:
    model = net()
    with es.record_leak(model) as leak:
        loss_of(model).backward()
        late = loss_of(model)
    before = dict(leak.layers)
    late.backward()
    assert leak.layers == before


def test_layers_without_gradient_are_absent() -> None:
    model = net()
    with es.record_leak(model) as leak:
        model[0](X)
        model[2](torch.randn(3, 70)).sum().backward()
    assert list(leak.layers) == ["2"]


def test_under_autocast() -> None:
    model = net()
    with es.record_leak(model) as leak:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
    for name, (outside, inside) in dense_parts(model).items():
        assert leak.layers[name].outside == pytest.approx(outside, rel=0.05)
        assert leak.layers[name].inside == pytest.approx(inside, rel=0.05)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_activation_checkpointing(reentrant: bool) -> None:
    model = net()
    with es.record_leak(model) as leak:
        y = torch.utils.checkpoint.checkpoint(model, X.clone().requires_grad_(), use_reentrant=reentrant)
        (10 * nn.functional.cross_entropy(y, TARGET)).backward()
    check(leak, dense_parts(model))


def test_an_embedded_cnn() -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    x = torch.randn(4, 3, 6, 6)
    leaks = {}
    for support_ in (es.Local(), es.Dilated(1), es.Full()):
        model = es.embed(cnn, x, support=support_)
        with es.record_leak(model) as leak:
            model(x).square().sum().backward()
        leaks[repr(support_)] = leak.layers["0.linear"].outside
    local, dilated, full = leaks.values()
    assert local > dilated > full == 0.0


def test_factors_are_those_of_the_whole_gradient() -> None:
    model = net()
    with es.record_factors(model) as factors:
        loss_of(model).backward()
        loss_of(model).backward()
    assert list(factors) == ["2", "0"]
    for name, (dy, x) in factors.items():
        layer = model.get_submodule(name)
        torch.testing.assert_close(es.sddmm(dy, x, layer.pattern), layer.values.grad)
        assert not dy.requires_grad
        assert not x.requires_grad


def test_factors_under_autocast_are_those_that_were_multiplied() -> None:
    model = net()
    with es.record_factors(model) as factors:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
    for name, (dy, x) in factors.items():
        layer = model.get_submodule(name)
        assert dy.dtype == x.dtype == torch.bfloat16
        torch.testing.assert_close(es.sddmm(dy, x, layer.pattern).float(), layer.values.grad, rtol=0, atol=0)


def test_an_input_that_is_overwritten_is_refused() -> None:
    layer = es.SparseLinear(8, 8, es.BlockPattern.dense((8, 8), (4, 4)))
    layer.values.requires_grad_(False)  # or autograd itself refuses
    x = torch.randn(3, 8)
    with es.record_factors(layer):
        y = layer(x)
        x.zero_()
        with pytest.raises(RuntimeError, match="model: the input must not be changed in place before backward"):
            y.sum().backward()


class ByNameAndWeight(nn.Module):
    """Calls one layer by keyword, and one also through its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        pattern = es.BlockPattern.random((45, 45), (8, 8), 0.4)
        self.first, self.second = es.SparseLinear(45, 45, pattern), es.SparseLinear(45, 45, pattern)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(input=x).tanh()
        assert self.second.weight.dtype == y.dtype
        return self.second(nn.functional.linear(y, self.second.weight, self.second.bias).tanh())


def attention() -> nn.Module:
    return es.sparsify(nn.MultiheadAttention(45, 3), {"out_proj": dict(density=0.4, block_shape=(8, 8))})


@pytest.mark.parametrize("make", [ByNameAndWeight, attention])
def test_layers_called_by_name_and_read_through_their_weight(make) -> None:
    model = make().double()
    dense, x = es.densify(copy.deepcopy(model)), X.double()

    def run(one: nn.Module) -> torch.Tensor:
        return (one(x, x, x)[0] if isinstance(one, nn.MultiheadAttention) else one(x)).square().sum()

    with es.record_leak(model, precise=True) as leak, es.record_factors(model) as factors:
        run(model).backward()
    run(dense).backward()
    for name, layer in model.named_modules():
        if isinstance(layer, es.SparseLinear):
            gradient, inside = dense.get_submodule(name).weight.grad, support(layer.pattern)
            assert torch.allclose(factors[name].dy.T @ factors[name].x, gradient)
            assert torch.allclose(layer.pattern.gather(gradient), layer.values.grad)
            assert leak.layers[name].outside == pytest.approx(float(gradient[~inside].norm()), rel=1e-9)
    assert all(not layer._on_weight for layer in model.modules() if isinstance(layer, es.SparseLinear))


def test_what_was_compiled_before_does_not_see_a_recording() -> None:
    layer = ByNameAndWeight().second
    read = torch.compile(lambda x: nn.functional.linear(x, layer.weight), backend="eager", fullgraph=True)
    read(X).sum().backward()
    with es.record_factors(layer) as factors:
        read(X).sum().backward()
    assert not factors
