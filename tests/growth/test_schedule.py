"""When blocks move, how many, and going on from a checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.growth.nets import LAYERS, OPTIMIZERS, assert_same, batch, growing_net, train
from tests.refused import BadCall, assert_refused


def grown(every: int = 3, **more: Any) -> tuple[nn.Module, torch.optim.Optimizer, es.Growth]:
    model = growing_net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    return model, optimizer, es.Growth(model, optimizer, every=every, **more)


def movable(model: nn.Module) -> dict[str, int]:
    return {name: int(model.get_submodule(name).movable_blocks().sum()) for name in LAYERS}


def test_when_and_how_many() -> None:
    model, optimizer, growth = grown(exchange=0.4, until=14)
    count = movable(model)
    assert min(count.values()) > 5
    moved = train(model, optimizer, growth, range(20))
    assert moved[2] == count  # everything, since chance has placed them
    for step in range(20):
        if step in (5, 8, 11):
            share = 0.4 * 0.5 * (1 + math.cos(math.pi * step / 14))
            assert moved[step] == {name: math.ceil(share * count[name]) for name in LAYERS}
        elif step != 2:
            assert moved[step] == {}
    assert movable(model) == count


def test_without_an_end_the_share_stays() -> None:
    model, optimizer, growth = grown(every=1, exchange=0.25)
    count = movable(model)
    moved = train(model, optimizer, growth, range(4))
    assert moved[1:] == [{name: math.ceil(0.25 * count[name]) for name in LAYERS}] * 3


def test_going_on_is_the_same_as_not_stopping() -> None:
    model, optimizer, growth = grown(until=20)
    train(model, optimizer, growth, range(7))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict(), growth.state_dict()))
    train(model, optimizer, growth, range(7, 13))

    again, fresh, resumed = grown(until=20)
    again.load_state_dict(kept[0])
    fresh.load_state_dict(kept[1])
    resumed.load_state_dict(kept[2])
    train(again, fresh, resumed, range(7, 13))
    assert_same(model, again)
    assert growth.state_dict() == resumed.state_dict()


def test_gradients_of_several_passes_add_up() -> None:
    places = []
    for parts in (1, 3):
        model, optimizer, growth = grown(every=1)
        x, y = torch.randn(9, 3, 6, 6, generator=torch.Generator().manual_seed(3)), torch.arange(9) % 5
        for xs, ys in zip(x.chunk(parts), y.chunk(parts), strict=True):
            with growth.watch():
                nn.functional.cross_entropy(model(xs), ys, reduction="sum").backward()
        optimizer.step()
        growth.step()
        places.append([model.get_submodule(name).linear.pattern for name in LAYERS])
    assert places[0] == places[1]


def test_it_finds_where_the_gradient_is() -> None:
    """A task that needs one far-away pixel: after one growth its blocks are stored, and the loss falls."""
    torch.manual_seed(0)
    net = es.embed(nn.Conv2d(1, 1, 1, bias=False), torch.zeros(1, 1, 8, 8), layers={
        "": dict(support=es.Grown(1.2), block_shape=(1, 1))})  # fmt: skip
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    growth = es.Growth(net, optimizer, every=4)
    losses = []
    for step in range(60):
        x = torch.randn((64, 1, 8, 8), generator=torch.Generator().manual_seed(step))
        target = torch.zeros_like(x)
        target[:, 0, 0, 0], target[:, 0, 7, 7] = 3 * x[:, 0, 7, 7], 3 * x[:, 0, 0, 0]
        optimizer.zero_grad()
        with growth.watch():
            loss = (net(x) - target).square().sum((1, 2, 3)).mean()
            loss.backward()
        optimizer.step()
        growth.step()
        losses.append(loss.item())
    mask = net.linear.pattern.to_mask()
    assert bool(mask[0, 63])
    assert bool(mask[63, 0])
    assert losses[-1] < 0.01 * losses[0]


def test_a_compiled_model_grows_between_its_steps() -> None:
    model, optimizer, growth = grown(every=2)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled, moved = torch.compile(model, backend=backend, fullgraph=True), 0
    for step in range(6):
        x, y = batch(step)
        optimizer.zero_grad()
        with growth.watch():
            nn.functional.cross_entropy((model if growth.due else compiled)(x), y).backward()
        optimizer.step()
        moved += len(growth.step())
    assert moved == 3 * len(LAYERS)
    assert len(graphs) == 1
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


def test_plain_layers_by_name() -> None:
    torch.manual_seed(0)
    pattern = es.BlockPattern.random((24, 24), (4, 4), 0.5)
    model = nn.Sequential(es.SparseLinear(24, 24, pattern), nn.ReLU(), es.SparseLinear(24, 24, pattern))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = es.Growth(model, optimizer, every=1, layers=["2"])
    with growth.watch():
        model(torch.randn(5, 24)).square().sum().backward()
    assert {name: done.blocks for name, done in growth.step().items()} == {"2": math.ceil(0.3 * 18)}
    assert model[0].pattern == pattern  # type: ignore[union-attr]


def local_net() -> nn.Sequential:
    return nn.Sequential(es.embed(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)))


def with_optimizer(kind: Callable[..., Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = growing_net()
    return model, kind(model.parameters())


BAD: dict[str, BadCall] = {
    "every": (lambda: grown(every=0), ValueError, "every must be an integer of at least 1, got 0"),
    "exchange": (lambda: grown(exchange=0.0), ValueError, "exchange must lie in (0, 1], got 0.0"),
    "until": (lambda: grown(until=0), ValueError, "until must be an integer of at least 1 or None, got 0"),
    "optimizer": (
        lambda: es.Growth(growing_net(), "sgd", every=1),  # type: ignore[arg-type]
        TypeError, "optimizer must be a torch optimizer, got str"),
    "nothing grows": (
        lambda: es.Growth(local_net()[0], torch.optim.SGD([torch.ones(1)]), every=1),
        ValueError,
        "model must hold a convolution embedded with Grown(budget), or a SparseLinear, got EmbeddedConv without one"),
    "an optimizer whose state cannot move": (
        lambda: es.Growth(*with_optimizer(torch.optim.Adafactor), every=1),
        ValueError, "optimizer must keep a state for each value, which moves with its block, got Adafactor"),
    "an optimizer of other parameters": (
        lambda: es.Growth(growing_net(), torch.optim.SGD([torch.ones(1)]), every=1),
        ValueError, "optimizer must hold layer.values, got SGD without them"),
    "a name": (
        lambda: grown(layers=["9"]),
        ValueError, "layers must name sparse layers of the model, ['0', '2'], got ['9']"),
    "a string": (lambda: grown(layers="0"), ValueError, "layers must be a sequence of name patterns, got '0'"),
    "local": (
        lambda: es.Growth(local_net(), torch.optim.SGD([torch.ones(1)]), every=1, layers=["0"]),
        NotImplementedError, "layer must have the support Grown(budget) for its blocks to move, got local"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    assert_refused(*BAD[case])


def test_a_step_that_was_not_watched_is_refused() -> None:
    model, optimizer, growth = grown(every=1)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"^forward and backward must run inside growth.watch\(\)"):
        growth.step()
    assert growth.steps == 0


@pytest.mark.parametrize("budget", [0, 0.99, float("nan"), float("inf"), "2", True])
def test_budgets(budget: Any) -> None:
    with pytest.raises(ValueError, match=r"^budget must be a number of at least 1, got "):
        es.Grown(budget)


def test_starts() -> None:
    with pytest.raises(ValueError, match=r"^start must be Local\(\) or Dilated\(radius\), got Full\(\)$"):
        es.Grown(2, es.Full())
