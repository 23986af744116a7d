"""Out of memory, or any other error, at any moment of a regrowth: the layer is as it was, or wholly changed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import efcn_sparse as es
from tests.growth.cases import factors, layer_of, masked_and_whole


class Fails(TorchDispatchMode):
    """Raises at the n-th operation, once."""

    def __init__(self, at: int, only: Callable[[str], bool]) -> None:
        super().__init__()
        self.left, self.only, self.fired = at, only, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.only(str(func)):
            self.left -= 1
            if self.left < 0 and not self.fired:
                self.fired = True
                raise torch.OutOfMemoryError(f"injected at {func}")
        return func(*args, **(kwargs or {}))


def prepared() -> tuple[es.SparseLinear, torch.optim.Optimizer]:
    layer = layer_of(masked_and_whole())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.randn(9, layer.in_features, generator=torch.Generator().manual_seed(0))).square().mean().backward()
    optimizer.step()
    return layer, optimizer


def state_of(layer: es.SparseLinear, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = optimizer.state[layer.values]
    tensors = [layer.values, layer.values.grad, *state.values(), layer.pattern.crow_indices, layer.pattern.col_indices]
    return copy.deepcopy([tensor.detach() for tensor in tensors])


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def outcomes(only: Callable[[str], bool]) -> list[str]:
    """Fail at the first such operation, the second, … until none is left; what each left behind."""
    layer, optimizer = prepared()
    dy, x = factors(layer.pattern, 9)
    old = state_of(layer, optimizer)
    es.regrow(layer, dy, x, blocks=2, optimizer=optimizer)
    new, seen = state_of(layer, optimizer), []
    assert not equal(old, new)
    for at in itertools.count():
        layer, optimizer = prepared()
        with Fails(at, only) as fails:
            if at == 10_000:
                raise AssertionError("regrow does not end")
            try:
                es.regrow(layer, dy, x, blocks=2, optimizer=optimizer)
            except torch.OutOfMemoryError:
                assert fails.fired
        if not fails.fired:
            assert equal(state_of(layer, optimizer), new)
            return seen
        after = state_of(layer, optimizer)
        seen.append("old" if equal(after, old) else "new" if equal(after, new) else "torn")


def test_whatever_fails_before_the_swap_changes_nothing() -> None:
    seen = outcomes(lambda name: not name.startswith("aten.copy_"))
    assert len(seen) > 50
    assert set(seen) == {"old"}


def test_an_interrupted_swap_is_finished() -> None:
    seen = outcomes(lambda name: name.startswith("aten.copy_"))
    assert "torn" not in seen
    assert seen.count("new") == 8  # values, their gradient, two moments; four index arrays


@pytest.mark.parametrize("poison", ["dy", "x", "values"])
def test_not_finite(poison: str) -> None:
    layer, optimizer = prepared()
    dy, x = factors(layer.pattern, 9)
    {"dy": dy, "x": x, "values": layer.values.data.flatten(1)}[poison][0, 0] = torch.nan
    old = state_of(layer, optimizer)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        es.regrow(layer, dy, x, blocks=2, optimizer=optimizer)
    assert str(error.value) == f"{'layer.' * (poison == 'values')}{poison} must be finite, got NaN or infinity"
    after = state_of(layer, optimizer)
    assert equal([tensor.nan_to_num() for tensor in after], [tensor.nan_to_num() for tensor in old])
