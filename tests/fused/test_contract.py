"""When values move, and that they then move as without fusion: by all that has come to them, and by nothing else."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.utils.checkpoint import checkpoint

import efcn_sparse as es
from efcn_sparse.fused import layer_update, updating
from tests.fused.pair import KINDS, Pair


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 2048)
    made = Pair(request.param)
    made.step(lambda net: net(made.batch(0)).square().mean())  # state is not fresh
    assert all(layer.values.grad is None for layer in (made.net[0], made.net[2]))
    made.assert_same()
    return made


def values_of(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- what counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_inside", [False, True])
@pytest.mark.filterwarnings("ignore:FusedOptimizer")
def test_accumulated_gradients_count_once_and_whole(pair: Pair, last_inside: bool) -> None:
    for net, optimizer in ((pair.net, pair.optimizer), (pair.twin, pair.unfused)):
        optimizer.zero_grad()
        before = values_of(net)
        for micro in range(1, 4):
            net(pair.batch(micro)).square().mean().backward()
        assert_equal(values_of(net), before)
        if last_inside:
            with updating(optimizer):
                net(pair.batch(4)).square().mean().backward()
        pair.finish(net, optimizer)
    pair.assert_same()


LOSSES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a penalty on values": lambda net, x: net(x).square().mean() + net[0].values.square().sum(),
    "nothing but a penalty": lambda net, x: net[0].values.square().sum() + 0 * net(x).sum(),
    "a penalty on the dense weight": lambda net, x: net(x).square().mean() + net[2].weight.abs().sum(),
    "every layer twice": lambda net, x: net(net(x)).square().mean(),
    "some of the layers": lambda net, x: net[2](torch.tanh(torch.ones(2, 30, dtype=x.dtype))).square().mean(),
}


def gradient_penalty(net: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).square().mean(), x, create_graph=True)
    return net(x).square().mean() + slope.square().sum()


@pytest.mark.parametrize("name", [*LOSSES, "a gradient penalty"])
def test_all_that_has_come_to_the_values_counts(pair: Pair, name: str) -> None:
    loss = LOSSES.get(name, gradient_penalty)
    for seed in (1, 2):
        pair.step(lambda net, seed=seed: loss(net, pair.batch(seed)))
    pair.assert_same()


def test_a_checkpointed_segment(pair: Pair) -> None:
    for reentrant in (False, True):
        x = pair.batch(1).requires_grad_()
        pair.step(
            lambda net, x=x, r=reentrant: torch.utils.checkpoint.checkpoint(net, x, use_reentrant=r).square().mean()
        )
    pair.assert_same()


def test_a_closure_runs_inside(pair: Pair) -> None:
    seen = []
    for net, optimizer in ((pair.net, pair.optimizer), (pair.twin, pair.unfused)):

        def closure(net: nn.Module = net, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = net(pair.batch(1)).square().mean()
            loss.backward()
            if net is pair.twin and "max_norm" in pair.settings:
                nn.utils.clip_grad_norm_(net.parameters(), pair.settings["max_norm"])
            return loss

        seen.append(float(optimizer.step(closure).detach()))
    assert seen[0] == pytest.approx(seen[1])
    assert pair.net[0].values.grad is None
    pair.assert_same()


# -- what moves nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_derivatives_that_are_asked_for_move_nothing(pair: Pair, inside: bool) -> None:
    net, twin, x = pair.net, pair.twin, pair.batch(1)
    before = values_of(net)
    with pair.optimizer.updating() if inside else warnings.catch_warnings():
        for what in (lambda n, y: x, lambda n, y: n[0].values, lambda n, y: n[2].values):
            found = []
            for one in (net, twin):
                x.requires_grad_()
                y = one(x).square().mean()
                found.append(torch.autograd.grad(y, what(one, y))[0])
            torch.testing.assert_close(*found)
        net(x).square().mean().backward(inputs=[x])
        torch.func.grad(lambda x: net(x).square().mean())(x.detach())
        torch.func.jvp(lambda x: net(x), (x.detach(),), (x.detach(),))
    assert_equal(values_of(net), before)
    assert net[0].values.grad is None
    pair.step(lambda n: n(pair.batch(2)).square().mean())
    pair.assert_same()


def test_a_second_gradient_inside_is_refused(pair: Pair) -> None:
    def backward() -> None:
        pair.net(pair.batch(1)).square().mean().backward()

    with pair.optimizer.updating():
        backward()
    moved = values_of(pair.net[0])
    with (
        pytest.raises(RuntimeError, match=r"^[02]: must get one gradient between two steps inside updating\(\)"),
        pair.optimizer.updating(),
    ):
        backward()
    assert_equal(values_of(pair.net[0]), moved)
    pair.net.zero_grad()
    backward()
    with pytest.raises(RuntimeError, match=r"^0: got a gradient after its update inside updating\(\)"):
        pair.optimizer.step()
    pair.optimizer.zero_grad()
    with pair.optimizer.updating():
        backward()


def test_a_graph_from_before_a_step_is_refused(pair: Pair) -> None:
    loss = pair.net(pair.batch(1)).square().mean()
    pair.step(lambda net: net(pair.batch(2)).square().mean())
    with pytest.raises(RuntimeError, match=r"values were updated since the forward pass|modified by an inplace"):
        loss.backward()


def test_a_backward_pass_that_failed_leaves_nothing_behind(pair: Pair) -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            raise OSError

    before = values_of(pair.net[2])
    layer, x = pair.net[2], torch.randn(3, 30, dtype=torch.float64)
    with pytest.raises(OSError), pair.optimizer.updating():  # noqa: PT011  # of the two uses one has delivered
        layer(torch.tanh(Fails.apply(layer(x)[:, :1]).repeat(1, 30))).sum().backward()
    pair.optimizer.zero_grad()
    assert_equal(values_of(layer), before)
    pair.step(lambda net: net(pair.batch(2)).square().mean())
    pair.assert_same()


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:FusedOptimizer")
def test_a_gradient_that_is_not_finite_can_be_skipped(poison: float, inside: bool) -> None:
    pair = Pair("skip_nonfinite")
    pair.step(lambda net: net(pair.batch(0)).square().mean())
    before, state = values_of(pair.net), copy.deepcopy(pair.optimizer.state_dict())
    with pair.optimizer.updating() if inside else warnings.catch_warnings():
        (pair.net(pair.batch(1)) * poison).sum().backward()
    pair.optimizer.step()
    assert pair.optimizer.skipped == 1
    assert_equal(values_of(pair.net), before)
    for place, kept in pair.optimizer.state_dict()["state"].items():
        assert all(torch.equal(entry, state["state"][place][key]) for key, entry in kept.items())
    pair.step(lambda net: net(pair.batch(2)).square().mean())
    pair.assert_same()


# -- copies and files --------------------------------------------------------------------------------------------


def test_a_copy_of_the_model_is_unfused_and_on_its_own(pair: Pair) -> None:
    file = io.BytesIO()
    torch.save(pair.net, file)
    file.seek(0)
    for other in (copy.deepcopy(pair.net), torch.load(file, weights_only=False)):
        assert other[0].product is None
        before = values_of(pair.net)
        with pair.optimizer.updating():
            other(pair.batch(1)).square().mean().backward()
        assert other[0].values.grad is not None
        assert_equal(values_of(pair.net), before)


def test_a_copy_of_model_and_optimizer_trains_alike(pair: Pair) -> None:
    twins = copy.deepcopy((pair.net, pair.optimizer)), pickle.loads(pickle.dumps((pair.net, pair.optimizer)))
    pair.step(lambda net: net(pair.batch(1)).square().mean())
    for net, optimizer in twins:
        assert net[0].values is not pair.net[0].values
        optimizer.zero_grad()
        with optimizer.updating():
            net(pair.batch(1)).square().mean().backward()
        optimizer.step()
        assert_equal(values_of(net), values_of(pair.net))
    pair.step(lambda net: net(pair.batch(2)).square().mean())  # the first one is what it was
    pair.assert_same()


def test_hooks_and_schedules_are_called(pair: Pair) -> None:
    called: list[str] = []
    optimizer = pair.optimizer
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.register_state_dict_post_hook(lambda o, state: state | {"mark": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: called.append("load"))
    for one in (optimizer, pair.unfused):
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: 0.5)
    pair.step(lambda net: net(pair.batch(1)).square().mean())
    pair.assert_same()
    state = optimizer.state_dict()
    assert state["mark"] == 1
    optimizer.load_state_dict(state)
    assert called == ["before", "after", "load"]
    for one in (optimizer, pair.unfused):
        for group in one.param_groups:
            group["lr"] *= 0.5
    pair.step(lambda net: net(pair.batch(2)).square().mean())
    pair.assert_same()


def test_checkpoints_of_torch_distributed(pair: Pair) -> None:
    net, optimizer = copy.deepcopy((pair.net, pair.optimizer))
    pair.step(lambda net: net(pair.batch(1)).square().mean())
    net.load_state_dict(pair.net.state_dict())
    state = get_optimizer_state_dict(pair.net, pair.optimizer)
    assert {"0.values", "2.values"} <= {name for group in state["param_groups"] for name in group["params"]}
    set_optimizer_state_dict(net, optimizer, copy.deepcopy(state))
    pair.step(lambda net: net(pair.batch(2)).square().mean())
    with optimizer.updating():
        net(pair.batch(2)).square().mean().backward()
    optimizer.step()
    assert_equal(values_of(net), values_of(pair.net))


def test_what_is_no_longer_used_is_freed() -> None:
    pair = Pair("momentum")
    pair.step(lambda net: net(pair.batch(1)).square().mean())
    values = weakref.ref(pair.net[0].values)
    pair = None  # type: ignore[assignment]
    gc.collect()
    assert values() is None


# -- with others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("armed", [False, True])
@pytest.mark.parametrize("kind", ["momentum", "adamw", "inside", "max_norm"])
@pytest.mark.filterwarnings("ignore:FusedOptimizer", "error:FusedOptimizer. gradients were changed")
def test_a_gradient_scaler_is_exact(kind: str, armed: bool) -> None:
    pair = Pair(kind, torch.float32)
    scalers = []
    for net, optimizer in ((pair.net, pair.optimizer), (pair.twin, pair.unfused)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        scalers.append(scaler)
        inside = armed and net is pair.net
        for step in range(5):
            optimizer.zero_grad()
            loss = net(pair.batch(step)).square().mean() * (float("inf") if step == 1 else 1.0)
            before = [parameter.detach().clone() for parameter in net.parameters()]
            if inside and kind == "inside":
                with pytest.raises(ValueError, match=r"^grad_scaler must be None for steps inside"):
                    optimizer.updating(grad_scaler=scaler).__enter__()
            with optimizer.updating(grad_scaler=scaler) if inside and kind != "inside" else contextlib.nullcontext():
                scaler.scale(loss).backward()
            if step == 2 or (net is pair.twin and "max_norm" in pair.settings):
                scaler.unscale_(optimizer)
            if net is pair.twin and "max_norm" in pair.settings:
                nn.utils.clip_grad_norm_(net.parameters(), pair.settings["max_norm"])
            for parameter, then in zip(net.parameters(), before, strict=True):
                assert torch.equal(parameter, then)
            scaler.step(optimizer)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 1024.0  # halved once, doubled once
    for mine, theirs in zip(pair.net.parameters(), pair.twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_gradient_scaler_that_is_not_given_is_refused(pair: Pair) -> None:
    scaler = torch.amp.GradScaler("cpu")
    with pair.optimizer.updating():
        scaler.scale(pair.net(pair.batch(9)).square().mean()).backward()
    with pytest.raises(RuntimeError, match=r"^updates inside updating\(\) must not be scaled by a GradScaler"):
        scaler.step(pair.optimizer)


def test_a_step_that_the_gradient_scaler_does_not_take_is_refused() -> None:
    pair = Pair("adamw", torch.float32)
    with pytest.raises(TypeError, match=r"^grad_scaler must be a torch\.amp.GradScaler or None, got float"):
        pair.optimizer.updating(grad_scaler=1024.0).__enter__()  # type: ignore[arg-type]  # the point
    scaler = torch.amp.GradScaler("cpu")
    before = pair.net[0].values.detach().clone()
    with pair.optimizer.updating(grad_scaler=scaler):
        scaler.scale(pair.net(pair.batch(0)).square().mean()).backward()
    with pytest.raises(RuntimeError, match=r"^step must be called by grad_scaler.step\(optimizer\)"):
        pair.optimizer.step()
    with pytest.raises(RuntimeError, match=r"^updating\(\) must have the same grad_scaler until step"):
        pair.optimizer.updating().__enter__()
    assert torch.equal(pair.net[0].values, before)
    pair.optimizer.zero_grad()
    with pair.optimizer.updating(grad_scaler=torch.amp.GradScaler("cpu", enabled=False)):  # as none
        pair.net(pair.batch(0)).square().mean().backward()
    pair.optimizer.step()
    assert not torch.equal(pair.net[0].values, before)


@pytest.mark.parametrize("kind", ["adamw", "inside", "max_norm"])
def test_clipping_that_does_not_reach_the_values_is_told_once(kind: str) -> None:
    pair = Pair(kind)

    def step(seed: int, clip: bool) -> None:
        pair.optimizer.zero_grad()
        with pair.optimizer.updating():
            pair.net(pair.batch(seed)).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(pair.net.parameters(), 1e-3)
        pair.optimizer.step()

    with warnings.catch_warnings(record=True) as told:
        step(0, clip=False)
        assert not told
        step(1, clip=True)
        step(2, clip=True)
    (only,) = told
    assert re.match(r"FusedOptimizer: gradients were changed .* clip with FusedOptimizer\(max_norm=", str(only.message))


@pytest.mark.parametrize("reentrant", [False, True])
def test_clipping_is_told_of_checkpointed_layers_and_gradients_that_add_up_are_not(reentrant: bool) -> None:
    first, layer = nn.Linear(8, 8), es.SparseLinear(8, 8, es.BlockPattern.dense((8, 8), (4, 4)))
    net = nn.ModuleList([first, layer])
    optimizer = es.FusedOptimizer(net, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))

    def backward() -> None:  # a re-entrant checkpoint runs a pass of its own, before that of `first` has ended
        checkpoint(layer, first(torch.randn(4, 8)), use_reentrant=reentrant).square().mean().backward()

    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("ignore", "FusedOptimizer: .* of gradients of values were held")
        for clip in (False, True):
            backward()
            with optimizer.updating():
                backward()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            assert len(told) == clip


def test_a_graph_without_breaks_is_refused_in_our_words() -> None:
    pair = Pair("inside")
    compiled = torch.compile(pair.net, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"FusedOptimizer updates weights in .*use fullgraph=False"):
        compiled(pair.batch(0))


def test_parameters_that_come_later_are_stepped(pair: Pair) -> None:
    net, extra = pair.net, nn.Parameter(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^params must be outside the layers of the FusedOptimizer"):
        pair.optimizer.add_param_group({"params": [net[0].values]})
    pair.optimizer.add_param_group({"params": [extra], "lr": 1.0, "weight_decay": 0.0})
    with pair.optimizer.updating():
        (net(pair.batch(1)).square().mean() + extra.sum()).backward()
    pair.optimizer.step()
    assert (extra < 1).all()
    assert pair.optimizer.state_dict()["param_groups"][1]["lr"] == 1.0
    pair.optimizer.load_state_dict(pair.optimizer.state_dict())


@pytest.mark.parametrize("inside", [False, True])
def test_layers_that_are_frozen_at_first(inside: bool) -> None:
    pair = Pair("inside" if inside else "adamw")
    pair.optimizer.detach()
    for net in (pair.net, pair.twin):
        net[2].requires_grad_(False)
    make = KINDS["inside" if inside else "adamw"][0]
    pair.optimizer = es.FusedOptimizer(pair.net, make, inside=inside)
    pair.step(lambda net: net(pair.batch(1)).square().mean())
    for net in (pair.net, pair.twin):
        net[2].requires_grad_(True)
    pair.step(lambda net: net(pair.batch(2)).square().mean())
    pair.assert_same()


def test_masters_follow_values_that_were_loaded() -> None:
    net = nn.Sequential(es.SparseLinear(16, 16, es.BlockPattern.dense((16, 16), (8, 8)), dtype=torch.bfloat16))
    optimizer = es.FusedOptimizer(net, lambda p: torch.optim.SGD(p, lr=2**-12), precision="master")
    x = torch.eye(16, dtype=torch.bfloat16)
    for value in (1.0, 4.0):
        with torch.no_grad():
            net[0].values.fill_(value)
        for _ in range(2):
            with optimizer.updating():
                net(x).sum().backward()
            optimizer.step()
        assert (net[0].values == value).all()  # far below bf16's spacing
        expected = torch.full((4, 8, 8), value - 2 * 2**-12)
        assert torch.equal(optimizer.state[net[0].values]["master"], expected)
