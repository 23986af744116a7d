"""Pruning while training: what is zero, what is chosen, and that shrinking changes nothing."""

import copy
import doctest
import gc
import itertools
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.pruning import group_lasso
from tests.pruning.nets import OPTIMIZERS, RULES, SCHEDULE, blocks_of, net, train, zeros


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("score", ["magnitude", "gradient"])
def test_masks_first_then_storage_shrinks_and_nothing_else_changes(name: str, score: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    pruner = es.Pruner(model, RULES, SCHEDULE, optimizer, score=score)
    train(model, optimizer, pruner, range(2))
    assert pruner.densities == {"first": 1.0, "second": 1.0}
    train(model, optimizer, pruner, range(2, 12))
    assert pruner.densities == pytest.approx({"first": 12 / 48, "second": 16 / 66}, abs=0.01)  # 6×8 and 6×11 blocks
    for layer in (model.first, model.second):
        gone = zeros(layer.weight)
        assert 0.7 < gone.double().mean() < 0.8
        assert not gone.all(0).any()  # no block row or column without one
        assert not gone.all(1).any()
        for tensor in (layer.weight.grad, *(t for t in optimizer.state[layer.weight].values() if t.dim())):
            assert torch.equal(zeros(tensor), gone)

    twin, twins = copy.deepcopy((model, optimizer))
    for parameter, own in zip(model.parameters(), twin.parameters(), strict=True):
        own.grad = parameter.grad.clone()
    other = es.Pruner(twin, RULES, SCHEDULE, twins)
    other.load_state_dict(pruner.state_dict())
    bias, x = twin.second.bias, torch.randn(4, 30, dtype=torch.float64)
    gradient, y = twin.first.weight.grad, twin(x)
    assert other.finish() is twin
    assert type(twin.first) is type(twin.second) is es.SparseLinear
    assert twin.again is twin.second
    assert twin.second.bias is bias
    assert twin.first.values.shape == (12, 8, 4)
    torch.testing.assert_close(twin(x), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(twin.first.pattern.to_dense(twin.first.values.grad), gradient)
    train(model, optimizer, pruner, range(12, 17))
    train(twin, twins, other, range(12, 17))
    for masked, stored in ((model.first, twin.first), (model.second, twin.second)):
        torch.testing.assert_close(stored.to_linear().weight, masked.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(twin.head.weight, model.head.weight, rtol=1e-9, atol=1e-12)
    held = {id(p) for group in twins.param_groups for p in group["params"]}
    assert held == {id(p) for p in twin.parameters()}


def strongest(weight: Tensor, count: int) -> set[tuple[int, int]]:
    norms = {
        (i, j): float(block.norm()) for i, row in enumerate(blocks_of(weight, (8, 4))) for j, block in enumerate(row)
    }
    return set(sorted(norms, key=lambda place: -norms[place])[:count])


def test_the_strongest_blocks_stay_as_many_as_the_cubic_schedule_says() -> None:
    model, rules = net(), {"first": dict(density=0.25, block_shape=(8, 4))}
    pruner = es.Pruner(model, rules, SCHEDULE, torch.optim.SGD(model.parameters(), lr=0.0), cover=False)
    for step in range(1, 12):
        weight = model.first.weight.detach().clone()
        pruner.step()
        density = 0.25 + 0.75 * (1 - min(max(step - 2, 0), 7) / 7) ** 3
        if step in (5, 8, 9):
            kept = {tuple(place) for place in (~zeros(model.first.weight)).nonzero().tolist()}
            assert kept == strongest(weight, round(density * 48))
        else:
            assert torch.equal(weight, model.first.weight)
    assert pruner.densities == {"first": 0.25}


def test_gradient_score() -> None:
    """(Σ gradient · weight)² of each block, summed over the steps since the last choice."""
    model = net()
    schedule = es.CubicSchedule(begin=0, end=3, every=3)
    pruner = es.Pruner(
        model,
        {"second": RULES["*"]},
        schedule,
        torch.optim.SGD(model.parameters(), lr=0.0),
        score="gradient",
        cover=False,
    )
    sums = torch.zeros(6, 11, dtype=torch.float64)
    for _ in range(3):
        model.second.weight.grad = torch.randn_like(model.second.weight)
        rows = blocks_of((model.second.weight.grad * model.second.weight).detach(), (8, 4))
        sums += torch.tensor([[float(block.sum()) ** 2 for block in row] for row in rows])
        pruner.step()
    expected = sums.flatten().argsort(descending=True)[:16].sort().values
    assert torch.equal((~zeros(model.second.weight)).flatten().nonzero().squeeze(1), expected)
    model = net()
    fresh = es.Pruner(model, RULES, schedule, torch.optim.SGD(model.parameters(), lr=0.0), score="gradient")
    with pytest.raises(RuntimeError, match=r"first.weight must have a gradient: call pruner.step\(\) before zero_grad"):
        fresh.step()


def test_steps_that_a_gradient_scaler_skips_do_not_count() -> None:
    schedule, kept = es.CubicSchedule(begin=2, end=6), []
    for enabled in (False, True):
        scaler = torch.amp.GradScaler("cpu", 2.0**127, growth_interval=3, enabled=enabled)
        model = net().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        pruner = es.Pruner(model, RULES, schedule, optimizer, score="gradient")
        passes = 0
        while pruner.steps < 8:
            x = torch.randn(16, 30, generator=torch.Generator().manual_seed(pruner.steps))
            optimizer.zero_grad()
            scaler.scale(100 * nn.functional.cross_entropy(model(x), torch.arange(16) % 5)).backward()
            scaler.step(optimizer)
            scaler.update()
            pruner.step()
            passes += 1
        assert pruner.skipped == passes - 8
        assert (pruner.skipped > 1) == enabled
        again = copy.deepcopy((model, optimizer, pruner))[2]
        again.skipped = 0
        again.load_state_dict(pruner.state_dict())
        assert (again.steps, again.skipped) == (pruner.steps, pruner.skipped)
        kept.append(pruner.state_dict()["kept"])
    assert all(torch.equal(kept[1][name], blocks) for name, blocks in kept[0].items())


def test_weights_that_are_not_finite_are_no_skipped_step() -> None:
    model, schedule = net(), es.CubicSchedule(begin=0, end=1)
    pruner = es.Pruner(model, RULES, schedule, torch.optim.SGD(model.parameters(), lr=0.0), score="gradient")
    model(torch.randn(4, 30, dtype=torch.float64)).sum().backward()
    model.first.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"first.weight must have finite scores, got NaN or infinity"):
        pruner.step()


@pytest.mark.parametrize("cover", [True, False])
def test_one_threshold_for_all_layers(cover: bool) -> None:
    model = net()
    with torch.no_grad():
        model.second.weight.mul_(0.1)
    schedule = es.CubicSchedule(begin=0, end=1)
    rules = {"first": dict(density=0.25, block_shape=(8, 4)), "second": dict(density=0.25, block_shape=(4, 4))}
    before = {name: model.get_submodule(name).weight.detach().clone() for name in rules}
    pruner = es.Pruner(
        model, rules, schedule, torch.optim.SGD(model.parameters(), lr=0.0), budget="global", cover=cover
    )
    pruner.step()
    stored = {name: pruner.densities[name] * blocks for name, blocks in (("first", 48), ("second", 121))}
    wanted = 12 * 32 + 30 * 16
    assert wanted - 32 < stored["first"] * 32 + stored["second"] * 16 <= wanted
    if cover:
        assert stored["second"] == pytest.approx(11)  # the weak layer keeps what its rows and columns need
    else:
        assert stored["second"] == pytest.approx(1)
        kept = zeros(model.first.weight).logical_not()
        norms = torch.tensor([[float(block.norm()) for block in row] for row in blocks_of(before["first"], (8, 4))])
        assert norms[kept].min() > norms[~kept].max()


def test_blocks_of_different_sizes_compare_by_the_entry() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight.fill_(1.0)
        model.second.weight.fill_(1.2)  # a block of it has half the entries, and so the smaller norm
    rules = {"first": dict(density=0.5, block_shape=(8, 4)), "second": dict(density=0.5, block_shape=(4, 4))}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = es.Pruner(model, rules, es.CubicSchedule(begin=0, end=1), optimizer, budget="global", cover=False)
    pruner.step()
    assert pruner.densities["second"] > 0.8
    assert pruner.densities["first"] < 0.1


def test_erk_keeps_the_total_and_spares_the_small() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 256), nn.Linear(256, 512), nn.Linear(512, 8))
    rules = {"*": dict(density=0.2, block_shape=(4, 4))}
    pruner = es.Pruner(
        model, rules, es.CubicSchedule(begin=0, end=1), torch.optim.SGD(model.parameters(), lr=0.0), budget="erk"
    )
    pruner.step()
    sizes = [layer.weight.numel() for layer in model]
    densities = list(pruner.densities.values())
    assert sum(d * size for d, size in zip(densities, sizes, strict=True)) == pytest.approx(0.2 * sum(sizes), rel=0.01)
    assert densities[3] == 1.0  # it would get more than there is
    raw = [(layer.in_features + layer.out_features) / layer.weight.numel() for layer in model]
    for a, b in itertools.pairwise(range(3)):
        assert densities[a] / densities[b] == pytest.approx(raw[a] / raw[b], rel=0.02)


def test_a_weight_that_was_frozen_or_put_in_is_masked_from_the_next_step_on() -> None:
    model = net()
    model.first.requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = es.Pruner(model, RULES, SCHEDULE, optimizer)
    train(model, optimizer, pruner, range(10))
    model.first.requires_grad_(True)
    train(model, optimizer, pruner, range(10, 14))
    assert float((model.first.weight != 0).double().mean()) < 0.3
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    again = OPTIMIZERS["adamw"](model.parameters())
    again.load_state_dict(optimizer.state_dict())
    pruner._optimizer = again
    train(model, again, pruner, range(14, 18))
    assert float((model.second.weight != 0).double().mean()) < 0.3


def test_after_finish_the_penalty_is_of_what_is_stored_and_dense_weights_are_free() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = es.Pruner(model, RULES, SCHEDULE, optimizer)
    train(model, optimizer, pruner, range(10))
    optimizer.zero_grad()
    before, dense = pruner.group_lasso(), weakref.ref(model.first.weight)
    before.backward()
    wanted = model.first.weight.grad.clone()
    optimizer.zero_grad()
    del before
    pruner.finish()
    gc.collect()
    assert dense() is None
    after = copy.deepcopy(pruner).group_lasso()
    assert after.item() == pytest.approx(pruner.group_lasso().item(), rel=1e-12)
    pruner.group_lasso().backward()
    layer = model.first
    assert torch.allclose(layer.values.grad, layer.pattern.gather(wanted))


def test_what_cannot_follow_is_refused_before_anything_changes() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = es.Pruner(model, RULES, es.CubicSchedule(begin=0, end=2), optimizer)
    train(model, optimizer, pruner, range(1))
    before = copy.deepcopy(model.state_dict())
    optimizer.state[model.second.weight]["rows"] = torch.zeros(44)
    for change in (pruner.step, pruner.finish):
        with pytest.raises(ValueError, match=r"shaped like second.weight \[44, 44\], got state 'rows' of shape \[44\]"):
            change()
    del optimizer.state[model.second.weight]["rows"]
    with torch.no_grad():
        model.second.weight[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"second.weight must have finite scores, got NaN or infinity"):
        pruner.step()
    with torch.no_grad():
        model.second.weight[0, 0] = before["second.weight"][0, 0]
    assert type(model.first) is nn.Linear
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert pruner.steps == 1


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_state_of_another_shape_is_refused_at_the_first_step(kind: type[torch.optim.Optimizer]) -> None:
    model = nn.Sequential(nn.Linear(32, 32))
    optimizer = kind(model.parameters())
    pruner = es.Pruner(model, {"0": RULES["*"]}, es.CubicSchedule(begin=100, end=200), optimizer)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(torch.ones(4, 32)).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    with pytest.raises(
        ValueError, match=r"^optimizer must keep scalars or tensors shaped like 0.weight \[32, 32\], got"
    ):
        pruner.step()
    assert pruner.steps == 0


@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_has_one_pruner_and_stays_in_its_place(frozen: bool) -> None:
    model = net()
    model.second.weight.requires_grad_(not frozen)  # may be trained later
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = es.Pruner(model, {"second": RULES["*"]}, es.CubicSchedule(begin=1, end=1), optimizer)
    with pytest.raises(ValueError, match="'second' cannot be pruned: another Pruner does"):
        es.Pruner(model, RULES, SCHEDULE, optimizer)
    es.Pruner(model, {"first": RULES["*"]}, SCHEDULE, optimizer)
    copies = copy.deepcopy((model, optimizer, pruner))
    twin = copies[0]
    with pytest.raises(ValueError, match="'second' cannot be pruned: another Pruner does"):
        es.Pruner(twin, RULES, SCHEDULE, torch.optim.SGD(twin.parameters(), lr=0.1))
    twin = copy.deepcopy(model)
    es.Pruner(twin, RULES, SCHEDULE, torch.optim.SGD(twin.parameters(), lr=0.1))
    alone = copy.deepcopy(twin)
    for assigned in (False, True):  # a Pruner that is gone keeps the mask of its hook alone
        alone.second.weight.requires_grad_(assigned)
        others = torch.optim.SGD(alone.parameters(), lr=0.1)
        gone = es.Pruner(alone, {"second": RULES["*"]}, SCHEDULE, others)
        if assigned:
            alone.load_state_dict(twin.state_dict(), assign=True)
        del gone, others
        gc.collect()
    es.Pruner(alone, {"second": RULES["*"]}, SCHEDULE, torch.optim.SGD(alone.parameters(), lr=0.1))
    second = model.second
    before = second.weight.detach().clone()
    es.sparsify(model, {"second": RULES["*"]})
    for change in (pruner.step, pruner.finish):
        with pytest.raises(ValueError, match="model must hold 'second' as the Pruner was given it, got a SparseLinear"):
            change()
    assert pruner.steps == 0
    assert torch.equal(before, second.weight)


def test_group_lasso() -> None:
    weight = torch.randn(11, 9, dtype=torch.float64)
    weight[:8, :4] = 0.0
    weight.requires_grad_()
    found = group_lasso(weight, (8, 4))
    found.backward()
    found_gradient, weight.grad = weight.grad, None
    blocks = [block for row in blocks_of(weight, (8, 4)) for block in row if bool(block.any())]
    expected = torch.stack([block.numel() ** 0.5 * block.norm() for block in blocks]).sum()
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, weight.grad)
    model = net()
    pruner = es.Pruner(model, RULES, SCHEDULE, torch.optim.SGD(model.parameters(), lr=0.1))
    both = group_lasso(model.first.weight, (8, 4)) + group_lasso(model.second.weight, (8, 4))
    torch.testing.assert_close(pruner.group_lasso(), both)


class Shouting(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rules={"third": RULES["*"]}), r"rules must each match an nn.Linear, got \['third'\]"),
        (dict(rules={"first": dict(density=0.0, block_shape=(8, 4))}), r"rules must be dict\(density in \(0, 1\]"),
        (dict(rules={"*": None}), "rules must choose at least one nn.Linear"),
        (dict(score="size"), "score must be one of magnitude, gradient, got 'size'"),
        (dict(budget="fair"), "budget must be one of uniform, erk, global, got 'fair'"),
        (dict(schedule=10), "schedule must be a CubicSchedule, got int"),
        (dict(optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))])), "optimizer must hold first.weight, got SGD"),
        (dict(model=nn.Sequential(Shouting(8, 8)), rules={"0": RULES["*"]}), "'0' cannot be pruned: its class has a"),
        (dict(model=nn.Linear(8, 8), rules={"": RULES["*"]}), "'' cannot be pruned: it is the model itself"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    model = change.pop("model", None) or net()
    arguments = dict(rules=RULES, schedule=SCHEDULE, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        es.Pruner(model, **arguments)


@pytest.mark.parametrize(("begin", "end", "least"), [(5, 4, 5), (0, 0, 1), (0, 2.5, 1)])
def test_schedule_is_refused(begin: int, end: int, least: int) -> None:
    with pytest.raises(ValueError, match=f"end must be an integer of at least {least}, got {end}"):
        es.CubicSchedule(begin, end)


def test_all_at_one_step() -> None:
    model, schedule = net(), es.CubicSchedule(begin=3, end=3)
    pruner = es.Pruner(model, RULES, schedule, torch.optim.SGD(model.parameters(), lr=0.0))
    for density in (1.0, 1.0, 0.25, 0.25):
        pruner.step()
        assert pruner.densities == pytest.approx(dict.fromkeys(("first", "second"), density), abs=0.01)


def test_the_page_is_true() -> None:
    page = Path(__file__).parents[2] / "docs" / "pruning.md"
    done = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert done.attempted > 10
    assert done.failed == 0
