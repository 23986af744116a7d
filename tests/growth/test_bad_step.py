"""Steps after which blocks cannot move, or not all: nothing half done, and training goes on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import efcn_sparse as es


def net(seed: int = 0) -> nn.Sequential:
    generator = torch.manual_seed(seed)
    shapes = ((24, 20), (16, 24), (12, 16))
    layers = [es.SparseLinear(i, o, es.BlockPattern.random((o, i), (4, 4), 0.5, generator)) for o, i in shapes]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def batch(step: int) -> Tensor:
    return torch.randn(7, 20, generator=torch.Generator().manual_seed(step))


def prints(model: nn.Module) -> list[str]:
    return [module.pattern.fingerprint for module in model.modules() if isinstance(module, es.SparseLinear)]


def growing(model: nn.Module, fused: bool = False, **more: Any) -> tuple[torch.optim.Optimizer, es.Growth]:
    make = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
    optimizer = es.FusedOptimizer(model, make, skip_nonfinite=True) if fused else make(model.parameters())
    return optimizer, es.Growth(model, optimizer, every=2, **more)


def test_plain_layers_grow_without_being_named() -> None:
    model = net()
    optimizer, growth = growing(model)
    before = prints(model)
    for step in range(2):
        with growth.watch():
            model(batch(step)).square().mean().backward()
        optimizer.step()
        moved = growth.step()
    assert list(moved) == ["0", "2", "4"]
    assert all(one != other for one, other in zip(before, prints(model), strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("poison", ["loss", "the last layer's values", "overflow"])
def test_a_step_that_is_not_finite_moves_nothing_and_the_next_is_as_ever(poison: str, fused: bool) -> None:
    model = net()
    optimizer, growth = growing(model, fused)
    growth.load_state_dict({"steps": 1, "placed": True})
    before, values = prints(model), [p.detach().clone() for p in model.parameters()]
    with growth.watch():
        loss = model(batch(0)).square().mean()
        scale = {"loss": float("inf"), "overflow": 1e38}.get(poison, 1.0)
        (loss * scale).backward()
    if poison == "the last layer's values":
        model[4].values.data[0, 0, 0] = float("nan")
    assert growth.step() == {}
    assert (growth.skipped, growth.steps) == (1, 2)
    assert prints(model) == before
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    alone = net()
    other, fresh = growing(alone, fused)
    fresh.load_state_dict({"steps": 3, "placed": True})
    growth.load_state_dict({"steps": 3, "placed": True})
    for one, its, schedule in ((model, optimizer, growth), (alone, other, fresh)):
        its.zero_grad()
        with schedule.watch():
            one(batch(1)).square().mean().backward()
        assert len(schedule.step()) == 3
    assert prints(model) == prints(alone)  # no factors of the step that was skipped


def test_layers_without_a_gradient_keep_their_blocks() -> None:
    model = net()
    _, growth = growing(model)
    growth.load_state_dict({"steps": 1, "placed": True})
    before = prints(model)
    with growth.watch():
        model[2](torch.randn(3, 24)).square().sum().backward()
    assert list(growth.step()) == ["2"]
    assert [one == other for one, other in zip(before, prints(model), strict=True)] == [True, False, True]
    assert growth.skipped == 0
    growth.load_state_dict({"steps": 1, "placed": True})
    with growth.watch():
        model(batch(0))
    assert growth.step() == {}
    assert growth.skipped == 1


def test_all_are_chosen_before_one_moves() -> None:
    """A refusal of the last layer leaves the first as it was, and no factors for the next step."""
    model = net()
    optimizer, growth = growing(model)
    growth.load_state_dict({"steps": 1, "placed": True})
    before = prints(model)
    with growth.watch():
        model(batch(0)).square().mean().backward()
    optimizer.state[model[4].values]["odd"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"^optimizer must keep scalars or tensors shaped like values"):
        growth.step()
    assert prints(model) == before
    del optimizer.state[model[4].values]["odd"]
    with pytest.raises(RuntimeError, match=r"^forward and backward must run inside growth.watch\(\)"):
        growth.step()


def test_what_a_convolution_was_given_by_chance_is_exchanged_once_it_has_a_gradient() -> None:
    convs = [es.embed(nn.Conv2d(4, 4, 3, padding=1), torch.zeros(1, 4, 6, 6), support=es.Grown(1.5)) for _ in range(2)]
    model = nn.ModuleList(convs)
    growth = es.Growth(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, exchange=0.1)
    movable = int(convs[1].movable_blocks().sum())
    for used in (convs[:1], convs):
        with growth.watch():
            sum(conv(torch.randn(3, 4, 6, 6)).square().sum() for conv in used).backward()
        moved = growth.step()
    assert moved["1"].blocks == movable
    assert moved["0"].blocks < movable
    assert growth.state_dict() == {"steps": 2, "placed": True, "unplaced": []}


@pytest.mark.parametrize(
    ("make", "key", "fresh"),
    [
        (lambda p: torch.optim.Rprop(p, lr=0.03), "step_size", 0.03),
        (lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5), "sum", 0.5),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "exp_avg_sq", 0.0),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.filterwarnings("ignore:FusedOptimizer")
def test_the_state_of_a_new_block_is_that_of_a_new_parameter(make: Any, key: str, fresh: float, fused: bool) -> None:
    model = net()
    optimizer = es.FusedOptimizer(model, make) if fused else make(model.parameters())
    for step in range(2):
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    layer = model[0]
    done = es.regrow(layer, torch.randn(5, 24), torch.randn(5, 20), blocks=3, optimizer=optimizer)
    state = optimizer.state[layer.values][key]
    assert (state[done.source < 0] == fresh).all()
    assert (state[done.source >= 0] != fresh).any()


@pytest.mark.parametrize("ema", [False, True])
def test_averages_follow(ema: bool) -> None:
    """The average of the dense matrices, at the blocks that are there."""
    model = net()
    averaged = AveragedModel(model, **({"multi_avg_fn": get_ema_multi_avg_fn(0.5)} if ema else {}))
    optimizer, growth = growing(model, copies=[averaged])
    dense, x = copy.deepcopy(model)[0].to_linear().weight.detach(), batch(9)
    for step in range(5):
        optimizer.zero_grad()
        with growth.watch():
            model(batch(step)).square().mean().backward()
        optimizer.step()
        growth.step()
        averaged.update_parameters(model)
        now = model[0].to_linear().weight.detach()
        kept = dense * model[0].pattern.to_mask()
        dense = now if step == 0 else kept + (now - kept) * (0.5 if ema else 1 / (step + 1))
    torch.testing.assert_close(averaged.module[0].to_linear().weight, dense)
    assert prints(averaged) == prints(model)
    assert averaged(x).isfinite().all()


def test_a_copy_with_other_blocks_is_refused_before_anything_moves() -> None:
    model = net()
    other = copy.deepcopy(model)
    _, growth = growing(model, copies=[other])
    growth.load_state_dict({"steps": 1, "placed": True})
    es.regrow(other[2], torch.randn(5, 16), torch.randn(5, 24), blocks=2)
    before = prints(model)
    with growth.watch():
        model(batch(0)).square().mean().backward()
    with pytest.raises(ValueError, match=r"^copies must have the patterns of the model, .* in 2, got "):
        growth.step()
    assert prints(model) == before
    with pytest.raises(ValueError, match=r"^copies must have the patterns of the model"):
        growing(model, copies=[other])


def test_an_average_that_does_not_follow_is_noticed() -> None:
    model = net()
    averaged = AveragedModel(model)
    optimizer, growth = growing(model)
    for step in range(2):
        with growth.watch():
            model(batch(step)).square().mean().backward()
        optimizer.step()
        growth.step()
        averaged.update_parameters(model)
    with pytest.raises(ValueError, match="must be those of the layer's pattern"):
        averaged(batch(0))
