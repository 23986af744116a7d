"""An error or an interruption at any moment, in a convolution with ties and with an optimizer fused or not."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.fused import layer_update
from tests.growth.nets import OPTIMIZERS, growing_net, train
from tests.growth.test_atomic import Fails

Setup = tuple[nn.Module, torch.optim.Optimizer]


def prepared(fused: bool) -> Setup:
    model = growing_net()
    make = OPTIMIZERS["adamw"]
    optimizer = es.FusedOptimizer(model, make) if fused else make(model.parameters())
    train(model, optimizer, es.Growth(model, optimizer, every=100), range(2))
    return model, optimizer


def move(setup: Setup) -> None:
    model, optimizer = setup
    layer, generator = model.get_submodule("2"), torch.Generator().manual_seed(9)
    dy = torch.randn((5, layer.geometry.out_features), generator=generator)
    x = torch.randn((5, layer.geometry.in_features), generator=generator)
    es.regrow(layer, dy, x, blocks=4, optimizer=optimizer)


def snapshot(setup: Setup) -> list[torch.Tensor]:
    model, optimizer = setup
    layer = model.get_submodule("2")
    if isinstance(optimizer, es.FusedOptimizer):
        update = optimizer._updates["2.linear"]
        assert [id(p) for p in update.optimizer.param_groups[0]["params"]] == [id(p) for p in update._parameters]
        states = [update.optimizer.state[p] for p in update._parameters]
        assert len(update.optimizer.state) == len(states)
        moments = [torch.cat([state[key] for state in states]) for key in ("exp_avg", "exp_avg_sq")]
        whole = optimizer.state[layer.linear.values]
        assert torch.equal(moments[0], whole["exp_avg"])
        assert torch.equal(moments[1], whole["exp_avg_sq"])
        assert torch.equal(torch.cat([p.detach() for p in update._parameters]), layer.linear.values)
    else:
        state = optimizer.state[layer.linear.values]
        moments = [state["exp_avg"], state["exp_avg_sq"]]
    pattern, ties = layer.linear.pattern, layer.ties
    tensors = [layer.linear.values, *moments, pattern.crow_indices, pattern.col_indices, ties.class_of_block]
    assert len(ties.class_of_block) == pattern.nnz_blocks
    return [tensor.detach().clone() for tensor in tensors]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def outcomes(fused: bool, only: Callable[[str], bool]) -> list[str]:
    setup = prepared(fused)
    old = snapshot(setup)
    move(setup)
    new, seen = snapshot(setup), []
    assert not equal(old, new)
    for at in itertools.count():
        assert at < 10_000
        setup = prepared(fused)
        with Fails(at, only) as fails:
            try:
                move(setup)
            except torch.OutOfMemoryError:
                assert fails.fired
        if not fails.fired:
            assert equal(snapshot(setup), new)
            return seen
        after = snapshot(setup)
        seen.append("old" if equal(after, old) else "new" if equal(after, new) else "torn")
    raise AssertionError


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 16384)


@pytest.mark.parametrize("fused", [False, True])
def test_whatever_fails_before_the_swap_changes_nothing(fused: bool) -> None:
    kinds = ("index_select", "sort", "cat", "bmm", "empty", "zeros", "clone", "split", "searchsorted")
    seen = outcomes(fused, lambda name: any(kind in name for kind in kinds))
    assert len(seen) > 20
    assert set(seen) == {"old"}


@pytest.mark.parametrize("fused", [False, True])
def test_an_interrupted_swap_is_finished(fused: bool) -> None:
    seen = outcomes(fused, lambda name: name.startswith("aten.copy_"))
    assert "torn" not in seen
    assert "new" in seen
