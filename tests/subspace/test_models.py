"""Whole models: which layers count, what is left alone, what is printed."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.subspace import plan
from tests.subspace.nets import embedded, shaken


def test_every_embedded_convolution_by_name() -> None:
    read = es.deviation(shaken(embedded("full")))
    assert list(read.layers) == ["0", "2", "4"]
    for part in ("tied", "untied", "off_local", "norm", "bias_untied"):
        together = math.hypot(*(getattr(layer, part) for layer in read.layers.values()))
        assert getattr(read, part) == pytest.approx(together, rel=1e-12)


def test_a_model_may_be_one_layer() -> None:
    layer = es.embed(nn.Conv1d(2, 4, 3), torch.zeros(1, 2, 9))
    read = es.deviation(layer)
    assert list(read.layers) == [""]
    assert (
        read.tied
        == read.layers[""].tied
        == pytest.approx(float(layer.linear.values.detach().double().norm()), rel=1e-12)
    )


def test_a_shared_layer_counts_once() -> None:
    layer = shaken(es.embed(nn.Conv2d(4, 4, 3, padding=1), torch.zeros(1, 4, 5, 5)))
    once, twice = es.deviation(nn.Sequential(layer)), es.deviation(nn.Sequential(layer, nn.ReLU(), layer))
    assert once == twice
    assert list(twice.layers) == ["0"]


def test_a_bias_may_be_missing() -> None:
    layer = shaken(es.embed(nn.Conv2d(4, 4, 3, bias=False), torch.zeros(1, 4, 5, 5)))
    assert es.deviation(layer).bias_untied == 0.0
    assert es.deviation(es.project(layer, "cnn")).untied == 0.0


def test_the_untied_bias() -> None:
    layer = es.embed(nn.Conv2d(1, 2, 2), torch.zeros(1, 1, 3, 3))
    with torch.no_grad():
        layer.linear.bias += torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 2.0, 0.0, -2.0])
    assert es.deviation(layer).bias_untied == pytest.approx(math.sqrt(1 + 1 + 4 + 4), rel=1e-6)
    assert es.deviation(layer).untied == 0.0


def test_reading_changes_nothing_and_keeps_no_graph() -> None:
    model = shaken(embedded("full"))
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    read = es.deviation(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert versions == [p._version for p in model.parameters()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    numbers = [getattr(read, part.name) for part in dataclasses.fields(read) if part.name not in ("layers", "left")]
    assert all(type(number) is float for number in numbers)


def test_projecting_keeps_the_parameters_and_the_rest_of_the_model() -> None:
    model = shaken(embedded("full"))
    parameters, head = list(model.parameters()), model[6].weight.detach().clone()
    assert es.project(model, "cnn") is model
    assert all(a is b and a.requires_grad for a, b in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(head, model[6].weight)


def test_a_graph_from_before_the_projection_cannot_be_walked() -> None:
    model = shaken(embedded())
    loss = model(torch.randn(2, 3, 12, 12, requires_grad=True)).sum()
    es.project(model, "cnn")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_training_goes_on_after_projecting() -> None:
    model = shaken(embedded())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    es.project(model, "cnn")
    model(torch.randn(2, 3, 12, 12)).square().sum().backward()
    optimizer.step()
    assert es.deviation(model).untied > 0.0


def test_in_inference_mode() -> None:
    model = shaken(embedded())
    with torch.inference_mode():
        read = es.deviation(model)
        assert es.deviation(es.project(model, "lcn")).tied == pytest.approx(read.tied, rel=1e-12)
        inner = shaken(es.embed(nn.Conv2d(2, 2, 3), torch.zeros(1, 2, 5, 5)))
        assert es.deviation(es.project(inner, "cnn")).untied == 0.0
    assert es.deviation(model).tied == pytest.approx(read.tied, rel=1e-12)


def test_values_of_any_strides() -> None:
    model = shaken(embedded())
    expected = es.deviation(model)
    tied = es.deviation(es.project(copy.deepcopy(model), "cnn"))
    for module in model.modules():
        if isinstance(module, es.SparseLinear):
            module.values.data = module.values.data.transpose(1, 2).contiguous().transpose(1, 2)
            assert not module.values.is_contiguous()
    assert es.deviation(model) == expected
    assert es.deviation(es.project(model, "cnn")) == tied


def test_numbers_that_are_none_show() -> None:
    model = shaken(embedded("local"))
    with torch.no_grad():
        model[2].linear.values.view(-1)[model[2].linear.values.flatten().nonzero()[0]] = math.nan
    read = es.deviation(model)
    assert math.isnan(read.untied)
    assert math.isnan(read.norm)
    assert math.isnan(read.delta)
    assert not math.isnan(read.layers["0"].untied)


def test_plans_are_made_once_and_let_go() -> None:
    model = embedded()
    ties = [module.ties for module in model.modules() if hasattr(module, "ties")]
    es.deviation(model)
    plans = [plan.plan_of(t) for t in ties]
    es.project(copy.deepcopy(model), "cnn")
    assert all(plan.plan_of(t) is made for t, made in zip(ties, plans, strict=True))
    layer = es.embed(nn.Conv2d(1, 1, 2), torch.zeros(1, 1, 3, 3))
    es.deviation(layer)
    size = len(plan._PLANS)
    del layer
    gc.collect()
    assert len(plan._PLANS) == size - 1


def test_printed_as_a_table() -> None:
    table = str(es.deviation(embedded("full"))).splitlines()
    assert table[0].split() == ["layer", "delta", "tied", "untied", "off-local", "norm", "bias-untied"]
    assert [line.split()[0] for line in table[1:]] == ["0", "2", "4", "all"]
    assert len({len(line) for line in table}) == 1


def test_frozen() -> None:
    read = es.deviation(embedded())
    with pytest.raises(dataclasses.FrozenInstanceError):
        read.delta = 0.0  # type: ignore[misc]


class _HalfFunctional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.conv, self.head = (
            nn.Parameter(torch.randn(3, 2, 3, 3)),
            nn.Conv2d(3, 4, 2),
            nn.Conv2d(4, 5, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(nn.functional.conv2d(x, self.kernel)))


def test_how_much_of_the_convolutions_is_covered() -> None:
    x = torch.randn(1, 2, 6, 6)
    read = es.deviation(es.embed(_HalfFunctional(), x, layers={"kernel": None, "head": None}))
    assert set(read.left) == {"kernel", "head"}
    assert read.coverage == 48 / (48 + 54 + 20)
    assert str(read).endswith("of 39.3% of the convolutions' kernel numbers; still convolutions: head, kernel")
    whole = es.deviation(embedded("full"))
    assert (whole.left, whole.coverage) == ((), 1.0)
    assert "convolutions" not in str(whole)
