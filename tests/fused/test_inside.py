"""Steps of SGD inside the product: one rounding of the exact step, and nothing else than plain SGD is let in."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.fused import updating
from efcn_sparse.fused.inside import scaling_of
from tests import oracle
from tests.ops.inputs import randn, random_values
from tests.table import BFLOAT16, DEVICE, FLOAT16, FLOAT32, Row, pattern, rows

SETTINGS = {
    "plain": dict(lr=0.1),
    "decay": dict(lr=0.25, weight_decay=0.125),
    "maximize": dict(lr=0.1, weight_decay=0.01, maximize=True),
    "tensors": dict(lr=torch.tensor(0.1, dtype=torch.float64), weight_decay=0.01),
}


def layer_of(row: Row, name: str = "masked-ragged") -> es.SparseLinear:
    p = pattern(name, row.device)
    layer = es.SparseLinear(p.shape[1], p.shape[0], p, device=row.device, dtype=row.dtype)
    layer.backend = row.backend
    with torch.no_grad():
        layer.values.copy_(random_values(p, row, outside=0.0))
    return layer


def factors(layer: es.SparseLinear, row: Row, batch: int = 24) -> tuple[Tensor, Tensor]:
    return randn(batch, layer.in_features, row=row, seed=1), randn(batch, layer.out_features, row=row, seed=2)


def exact_step(old: Tensor, dy: Tensor, x: Tensor, layer: es.SparseLinear, settings: dict) -> oracle.Expected:
    """``(1 - lr · decay) · values - lr · dyᵀ x`` in fp64, by the definition of SGD."""
    rate, decay = float(settings["lr"]), settings.get("weight_decay", 0.0)
    sign = 1.0 if settings.get("maximize") else -1.0
    return oracle.accumulated(oracle.sddmm(dy, x, layer.pattern), sign * rate, 1.0 - rate * decay, old)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("name", ["masked-ragged", "square", "empty", "entries"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_step_is_the_exact_one_rounded_once(row: Row, name: str, settings: str) -> None:
    layer = layer_of(row, name)
    optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.SGD(p, **SETTINGS[settings]), inside=True)
    (x, dy), old = factors(layer, row), layer.values.detach().clone()
    x.requires_grad_()
    with optimizer.updating():
        layer(x).backward(dy)
    assert layer.values.grad is None
    assert optimizer.workspace_bytes == 0
    oracle.assert_accurate(layer.values, exact_step(old, dy, x, layer, SETTINGS[settings]), "step")
    # the gradient of x is that of the weights before the step
    oracle.assert_accurate(x.grad, oracle.spmm(dy, old, layer.pattern, transpose=True), "dx")
    oracle.assert_accurate(layer.bias.grad, oracle.column_sums(dy), "dbias")


def distance(layer: es.SparseLinear, exact: oracle.Expected) -> float:
    return float((layer.values.detach().cpu().double() - exact.exact).norm())


@pytest.mark.parametrize("row", rows(BFLOAT16, FLOAT16, where=lambda backend: not backend.slow))
@pytest.mark.parametrize("settings", ["plain", "decay", "maximize"])
def test_it_is_closer_to_the_exact_step_than_an_unfused_one(row: Row, settings: str) -> None:
    chosen = SETTINGS[settings]
    plain, inside = layer_of(row, "square"), layer_of(row, "square")
    (x, dy), old = factors(plain, row), plain.values.detach().clone()
    optimizer = torch.optim.SGD(plain.parameters(), **chosen)
    plain(x).backward(dy)
    optimizer.step()
    with es.FusedOptimizer(inside, lambda p: torch.optim.SGD(p, **chosen), inside=True).updating():
        inside(x).backward(dy)
    exact = exact_step(old, dy, x, plain, chosen)
    assert distance(inside, exact) < distance(plain, exact)
    torch.testing.assert_close(inside.values, plain.values, rtol=4 * torch.finfo(row.dtype).eps, atol=0.1)


@pytest.mark.parametrize("row", rows(FLOAT32))
@pytest.mark.parametrize("low", [BFLOAT16, FLOAT16])
def test_under_autocast_fp32_values_take_an_fp32_step(row: Row, low: torch.dtype) -> None:
    settings = SETTINGS["decay"]
    plain, inside = layer_of(row), layer_of(row)
    (x, dy), old = factors(plain, row), plain.values.detach().clone()
    dy = dy.to(low)
    optimizers = [
        torch.optim.SGD(plain.parameters(), **settings),
        es.FusedOptimizer(inside, lambda p: torch.optim.SGD(p, **settings), inside=True),
    ]
    gradients = []
    for layer, optimizer in zip((plain, inside), optimizers, strict=True):
        leaf = x.clone().requires_grad_()
        with torch.autocast(row.device, low):
            y = layer(leaf)
        with updating(optimizer):
            y.backward(dy)
        optimizer.step()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert inside.values.dtype == FLOAT32
    exact = exact_step(old, dy, x.to(low), inside, settings)
    oracle.assert_accurate(inside.values, exact, "step of fp32 values")  # by the bound of fp32
    assert distance(inside, exact) < 0.1 * distance(plain, exact)


@pytest.mark.parametrize("needs_dx", [True, False])
def test_the_copy_under_autocast_is_held_for_the_gradient_of_x_only(needs_dx: bool) -> None:
    layer = layer_of(Row("auto", DEVICE, FLOAT32))
    optimizer = es.FusedOptimizer(layer, lambda p: torch.optim.SGD(p, lr=0.1), inside=True)
    saved: list[Tensor] = []
    x = torch.randn(3, layer.in_features, device=DEVICE).requires_grad_(needs_dx)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        torch.autocast(DEVICE, BFLOAT16),
        optimizer.updating(),
    ):
        layer(x).sum().backward()
    copies = [tensor for tensor in saved if tensor.shape == layer.values.shape]
    assert [tensor.dtype for tensor in copies] == [BFLOAT16] * needs_dx


# -- what holds for every fused optimizer ------------------------------------------------------------------------


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    generator = torch.manual_seed(seed)
    patterns = [es.BlockPattern.random(shape, (8, 8), 0.5, generator) for shape in ((64, 40), (24, 64))]
    first, second = (es.SparseLinear(p.shape[1], p.shape[0], p, dtype=dtype) for p in patterns)
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(24, 5, dtype=dtype)).to(DEVICE)


def batch_of(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return (
        torch.randn((9, 40), generator=generator, dtype=dtype).to(DEVICE),
        torch.randn((9, 5), generator=generator, dtype=dtype).to(DEVICE),
    )


def decaying(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in steps:
        x, y = batch_of(step)
        optimizer.zero_grad()
        with updating(optimizer):
            nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
        for group in optimizer.param_groups:
            group["weight_decay"] *= 2


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_rates_and_decay_are_read_at_each_step() -> None:
    plain, inside = net(), net()
    before = inside[0].values.detach().clone()
    train(plain, decaying(list(plain.parameters())), range(4))
    train(inside, es.FusedOptimizer(inside, decaying, inside=True), range(4))
    assert_same(plain, inside)
    assert not torch.equal(inside[0].values, before)


def test_it_resumes_from_its_state_dict() -> None:
    first, second = net(), net()
    optimizer, resumed = (es.FusedOptimizer(model, decaying, inside=True) for model in (first, second))
    train(first, optimizer, range(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[1]["weight_decay"] == 0.04
    for model, one in ((first, optimizer), (second, resumed)):
        one.zero_grad()
        x, y = batch_of(2)
        with one.updating():
            nn.functional.mse_loss(model(x), y).backward()
        one.step()
    for mine, theirs in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_it_follows_blocks_that_move() -> None:
    plain, inside = net(), net()
    optimizers = [decaying(list(plain.parameters())), es.FusedOptimizer(inside, decaying, inside=True)]
    for model, optimizer in zip((plain, inside), optimizers, strict=True):
        train(model, optimizer, range(2))
        x = randn(9, 40, row=Row("auto", DEVICE, torch.float64), seed=5)
        dy = randn(9, 64, row=Row("auto", DEVICE, torch.float64), seed=6)
        assert len(es.regrow(model[0], dy, x, blocks=4, optimizer=optimizer).grown) == 4
        optimizer.param_groups[0]["lr"] = 0.1
        train(model, optimizer, range(2, 4))
    assert torch.equal(plain[0].pattern.col_indices, inside[0].pattern.col_indices)
    assert_same(plain, inside)


def test_the_leak_is_recorded_as_ever_and_models_may_move() -> None:
    plain = net(dtype=torch.float32)
    inside = copy.deepcopy(plain)
    optimizer = es.FusedOptimizer(inside, decaying, inside=True)
    plain, inside = plain.double(), inside.double()  # nothing is kept that lies where the values lay
    shares = []
    for model in (plain, inside):
        x, y = batch_of(0)
        with es.record_leak(model) as leak, optimizer.updating():
            nn.functional.mse_loss(model(x), y).backward()
        shares.append(leak.share)
    assert shares[0] == pytest.approx(shares[1], rel=1e-12)
    assert inside[0].values.grad is None


@pytest.mark.parametrize("inside", [False, True])
def test_frozen_values_stay(inside: bool) -> None:
    model = net()
    optimizer = es.FusedOptimizer(model, decaying, inside=inside)
    model[2].values.requires_grad_(False)
    before = [model[0].values.detach().clone(), model[2].values.detach().clone()]
    x, y = batch_of(0)
    with optimizer.updating():
        nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    assert not torch.equal(model[0].values, before[0])
    assert torch.equal(model[2].values, before[1])


def test_what_others_saved_of_the_values_is_known_to_be_gone() -> None:
    model = net()
    optimizer = es.FusedOptimizer(model, decaying, inside=True)
    penalty = model[0].values.square().sum()
    x, y = batch_of(0)
    with optimizer.updating():
        nn.functional.mse_loss(model(x), y).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        penalty.backward()


# -- refusals ----------------------------------------------------------------------------------------------------


class OfOnesOwn(torch.optim.SGD):
    """A step that may be anything."""


BAD_OPTIMIZERS = {
    "adam": (lambda p: torch.optim.Adam(p), TypeError, "0: make must give torch.optim.SGD for a step inside, got Adam"),
    "subclass": (lambda p: OfOnesOwn(p, lr=0.1), TypeError, "got OfOnesOwn"),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), ValueError, "0: momentum of SGD must be 0"),
    "dampening": (lambda p: torch.optim.SGD(p, lr=0.1, dampening=0.5), ValueError, "dampening of SGD must be 0"),
    "differentiable": (
        lambda p: torch.optim.SGD(p, lr=0.1, differentiable=True),
        ValueError,
        "must be False, got True",
    ),
    "groups": (
        lambda p: torch.optim.SGD([{"params": p}, {"params": [nn.Parameter(torch.zeros(1))]}], lr=0.1),
        ValueError,
        "0: SGD must have one parameter group, got 2",
    ),
}


@pytest.mark.parametrize("name", BAD_OPTIMIZERS)
def test_other_optimizers_are_refused(name: str) -> None:
    make, error, message = BAD_OPTIMIZERS[name]
    model = net()
    with pytest.raises(error, match=re.escape(message)):
        es.FusedOptimizer(model, make, inside=True)
    assert model[0].product is None  # still an ordinary model


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_norm": 1.0}, "max_norm must be None for steps inside, which know no gradient, got 1.0"),
        ({"skip_nonfinite": True}, "skip_nonfinite must be False for steps inside, which know no gradient, got True"),
        ({"precision": "master"}, "precision must be 'native' for steps inside, got 'master'"),
        ({"precision": "stochastic"}, "precision must be 'native' for steps inside, got 'stochastic'"),
    ],
)
def test_bad_arguments(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        es.FusedOptimizer(net(), decaying, inside=True, **keywords)


def test_settings_that_change_later_are_refused_before_the_values_change() -> None:
    model = net()
    optimizer = es.FusedOptimizer(model, decaying, inside=True)
    before = [layer.values.detach().clone() for layer in (model[0], model[2])]
    x, y = batch_of(0)

    def backward() -> None:
        optimizer.zero_grad()
        with optimizer.updating():
            nn.functional.mse_loss(model(x), y).backward()

    optimizer.param_groups[-1]["momentum"] = 0.9  # as a cyclic schedule does
    with pytest.raises(ValueError, match=r"^2: momentum of SGD must be 0.0, got 0.9$"):
        backward()
    optimizer.param_groups[-1]["momentum"] = 0
    handle = optimizer.inner[-1].register_step_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"^2: SGD must have no hooks"):
        backward()
    handle.remove()
    assert all(torch.equal(layer.values, old) for layer, old in zip((model[0], model[2]), before, strict=True))
    backward()
    assert not torch.equal(model[2].values, before[1])


def test_a_rate_on_the_device_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    with pytest.raises(TypeError, match=r"^layer: lr of SGD must be a number or a CPU tensor, got a tensor on meta$"):
        scaling_of("layer", optimizer)


def test_16_bit_values_of_another_kind_than_autocasts_are_refused() -> None:
    layer = layer_of(Row("auto", DEVICE, FLOAT16))
    optimizer = es.FusedOptimizer(layer, decaying, inside=True)
    before = layer.values.detach().clone()
    with torch.autocast(DEVICE, BFLOAT16):
        y = layer(torch.randn(3, layer.in_features, device=DEVICE))
    with (
        pytest.raises(
            TypeError, match=r"^out must have the dtype of a, torch.bfloat16 or torch.float32, got torch.float16$"
        ),
        optimizer.updating(),
    ):
        y.sum().backward()
    assert torch.equal(layer.values, before)


def test_the_scaling_is_that_of_sgd() -> None:
    weights = nn.Parameter(torch.randn(5, dtype=torch.float64))
    for settings in SETTINGS.values():
        optimizer = torch.optim.SGD([weights], **settings)
        alpha, beta = scaling_of("layer", optimizer)
        old, weights.grad = weights.detach().clone(), torch.randn_like(weights)
        optimizer.step()
        torch.testing.assert_close(weights.detach(), beta * old + alpha * weights.grad)
