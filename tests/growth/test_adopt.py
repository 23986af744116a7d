"""Patterns out of a state dict: the blocks that both have keep their values, and everything follows."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.growth.cases import factors, layer_of, stored_blocks
from tests.growth.nets import OPTIMIZERS, assert_same, batch, growing_net, train


def sparse(seed: int, density: float = 0.5) -> es.SparseLinear:
    return layer_of(es.BlockPattern.random((30, 37), (8, 8), density, torch.Generator().manual_seed(seed)), seed)


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 1.0])
def test_shared_blocks_stay(density: float) -> None:
    mine, theirs = sparse(1), sparse(2, density)
    parameter, dense, mask = mine.values, mine.to_linear().weight.detach(), mine.pattern.to_mask()
    assert es.adopt_patterns(mine, theirs.state_dict()) == [""]
    assert mine.pattern == theirs.pattern
    assert mine.values is parameter
    expected = torch.where(mask & theirs.pattern.to_mask(), dense, 0.0)
    assert torch.equal(mine.to_linear().weight, expected)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 37)
    assert torch.equal(mine(x), theirs(x))
    assert es.adopt_patterns(mine, theirs.state_dict()) == []


def test_after_regrowing_and_without_blocks_before() -> None:
    mine, theirs = sparse(1, 0.0), sparse(2)
    mine(torch.randn(3, 37)).sum().backward()
    es.regrow(theirs, *factors(theirs.pattern, 9), blocks=4)
    es.adopt_patterns(mine, theirs.state_dict())
    assert mine.values.grad is None  # it was of other blocks, and of another number of them
    mine.load_state_dict(theirs.state_dict())
    assert_same(mine, theirs)
    mine(torch.randn(3, 37)).sum().backward()
    assert mine.values.grad is not None
    assert mine.values.grad.shape == mine.values.shape


def test_an_average_by_hand_after_blocks_moved_is_told() -> None:
    mine, x = sparse(1), torch.randn(3, 37)
    average, frozen, fork = (copy.deepcopy(mine) for _ in range(3))

    def update() -> None:
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), mine.parameters(), strict=True):
                ours.lerp_(theirs, 0.1)
            average(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update()
        es.regrow(mine, *factors(mine.pattern, 9), blocks=4)
        optimizer = torch.optim.SGD(fork.parameters(), lr=0.1)
        fork(x).sum().backward()  # another net by now, which goes its own way
        optimizer.step()
        with torch.no_grad():
            fork(x), frozen(x), mine(x)
    with pytest.warns(UserWarning, match=r"^SparseLinear\(37, 30\): values were written, .* an average over"):
        update()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        es.adopt_patterns(average, mine.state_dict())
        update()
        es.regrow(mine, *factors(mine.pattern, 10), blocks=4)
        es.adopt_patterns(average, mine.state_dict())
        update()


def test_averages_of_state_dicts_round_to_the_indices_or_are_refused_by_name() -> None:
    mine, theirs = sparse(1), sparse(2)
    own, others = mine.state_dict(), theirs.state_dict()
    mine.load_state_dict({key: 0.9 * entry + 0.1 * entry for key, entry in own.items()})
    with pytest.raises(ValueError, match=r"index arrays were averaged.*is_floating_point\(\) only"):
        mine.load_state_dict({key: 0.9 * entry + 0.1 * others[key] for key, entry in own.items()})


def test_training_goes_on_under_a_fused_optimizer() -> None:
    """Load a net whose blocks have moved into one with a fused optimizer, state included, and go on."""
    nets = []
    for fused in (False, True):
        source = growing_net()
        first = es.FusedOptimizer(source, OPTIMIZERS["momentum"])
        growth = es.Growth(source, first, every=2)
        train(source, first, growth, range(5))
        if not fused:
            train(source, first, growth, range(5, 8))
            nets.append(source)
            continue
        target = growing_net()
        second = es.FusedOptimizer(target, OPTIMIZERS["momentum"])
        target.load_state_dict(source.state_dict())
        second.load_state_dict(first.state_dict())
        resumed = es.Growth(target, second, every=2)
        resumed.load_state_dict(growth.state_dict())
        train(target, second, resumed, range(5, 8))
        nets.append(target)
    assert_same(*nets)


def test_all_layers_or_none() -> None:
    mine = nn.ModuleDict({"a": sparse(1), "b": sparse(2)})
    theirs = nn.ModuleDict({"a": sparse(3), "b": layer_of(es.BlockPattern.dense((30, 37), (8, 4)))})
    before = mine["a"].pattern
    with pytest.raises(ValueError) as error:  # noqa: PT011
        es.adopt_patterns(mine, theirs.state_dict())
    assert str(error.value) == (
        "b: the state dict's pattern must be [30, 37] in blocks (8, 8), got [30, 37] in blocks (8, 4)"
    )
    assert mine["a"].pattern is before


def test_local_blocks_must_be_there() -> None:
    model = growing_net()
    state = model.state_dict()
    pattern = model.get_submodule("0").linear.pattern
    fewer = es.BlockPattern.random(pattern.shape, pattern.block_shape, 0.05)
    state["0.linear.crow_indices"], state["0.linear.col_indices"] = (
        fewer.crow_indices,
        fewer.col_indices,
    )
    blocks = stored_blocks(pattern)
    with pytest.raises(ValueError, match=r"^0: the state dict's pattern must hold every local block, got \d+ missing$"):
        es.adopt_patterns(model, state)
    assert stored_blocks(model.get_submodule("0").linear.pattern) == blocks


def test_other_supports_do_not_move() -> None:
    local, dilated = (
        es.embed(
            nn.Conv2d(2, 2, 3, padding=1),
            torch.zeros(1, 2, 6, 6),
            layers={"": dict(support=support, block_shape=(2, 2))},
        )
        for support in (es.Local(), es.Dilated(1))
    )
    wanted = dilated.state_dict()
    with pytest.raises(NotImplementedError, match=r"^layer must have the support Grown\(budget\)"):
        es.adopt_patterns(local, wanted)


def test_nothing_to_adopt() -> None:
    model = growing_net()
    before = {name: module.pattern for name, module in model.named_modules() if isinstance(module, es.SparseLinear)}
    assert es.adopt_patterns(model, {}) == []
    assert es.adopt_patterns(model, growing_net().state_dict()) == []
    for name, pattern in before.items():
        assert model.get_submodule(name).pattern is pattern
    model(batch(0)[0])
