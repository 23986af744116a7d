"""Which optimizers, layers and states a FusedOptimizer takes."""

from __future__ import annotations

import copy

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.fused import layer_update
from tests.fused.pair import KINDS, Pair, momentum


class Normed(torch.optim.SGD):
    """LARS in short: each parameter's gradient is divided by its norm."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= parameter.grad.norm()
        super().step()


class Adaptive(torch.optim.SGD):
    """Prodigy in short: a number for all parameters follows their gradients, here from the second step on."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        group = self.param_groups[0]
        group["seen"] = group.get("seen", 0.0) + sum(float(p.grad.sum()) for p in group["params"] if p.grad is not None)
        group["lr"] = 0.1 + 0.001 * group["seen"]


BAD = {
    "LBFGS": lambda p: torch.optim.LBFGS(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "Normed": lambda p: Normed(p, lr=0.1),
    "Adaptive": lambda p: Adaptive(p, lr=0.1),
}


@pytest.mark.parametrize("name", BAD)
def test_optimizers_that_are_not_elementwise_are_refused(name: str) -> None:
    net = Pair("momentum").twin
    with pytest.raises(ValueError, match=rf"^make must give an optimizer whose update .* got {name}: "):
        es.FusedOptimizer(net, BAD[name])
    assert net[0].product is None


class Counting(torch.optim.SGD):
    """A count in the parameter group, made in the first step, and a rate that falls with it."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group["lr"] = 0.1 / group["step"]
        super().step()


def test_what_is_counted_in_the_group_counts_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 1024)
    monkeypatch.setitem(KINDS, "counting", (lambda p: Counting(p, lr=0.1, momentum=0.9), {}))
    pair = Pair("counting")
    for seed in range(3):
        pair.step(lambda net, seed=seed: net(pair.batch(seed)).square().mean())
    pair.assert_same()
    assert [group["step"] for group in pair.optimizer.param_groups] == [3, 3, 3]


def test_a_subclass_that_is_elementwise_is_taken() -> None:
    class Signs(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.sign_()
            super().step()

    es.FusedOptimizer(Pair("momentum").twin, lambda p: Signs(p, lr=0.1))


def test_shared_values_and_old_state_dicts_are_refused() -> None:
    pair = Pair("momentum")
    pair.twin[0] = copy.deepcopy(pair.twin[2])
    pair.twin[0].values = pair.twin[2].values
    with pytest.raises(ValueError, match=r"^2: must have values of its own, got those of 0$"):
        es.FusedOptimizer(pair.twin, momentum)
    with pytest.raises(
        ValueError, match=r"^state_dict must hold 'state' and 'param_groups', got \['layers', 'rest'\]$"
    ):
        pair.optimizer.load_state_dict({"rest": None, "layers": {}})
    nested = pytest.raises(RuntimeError, match=r"^updating\(\) must not be entered inside itself$")
    with nested, pair.optimizer.updating(), pair.optimizer.updating():
        pass
