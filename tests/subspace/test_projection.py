"""``project`` is the orthogonal projection: idempotent, residual ⟂ result, nearest; and the way back to the CNN."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.subspace.nets import SUPPORTS, embedded_for, example_for, shaken, weights
from tests.table import Row, rows

ONTO = ("cnn", "lcn")


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def dot(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("onto", ONTO)
def test_twice_is_once(row: Row, support: str, onto: str) -> None:
    model = es.project(shaken(embedded_for(row, support)), onto, backend=row.backend)
    once = state(model)
    twice = state(es.project(model, onto, backend=row.backend))
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("row", rows(torch.float64))
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("onto", ONTO)
def test_orthogonal_and_nearest(row: Row, support: str, onto: str) -> None:
    model = shaken(embedded_for(row, support))
    before, parts = weights(copy.deepcopy(model)), es.deviation(model)
    result = weights(es.project(model, onto, backend=row.backend))
    residual = {name: before[name] - result[name] for name in before}
    assert abs(dot(residual, result)) < 1e-12 * dot(before, before)
    removed = parts.off_local**2 + (parts.untied**2 if onto == "cnn" else 0.0)
    assert dot(residual, residual) == pytest.approx(removed, rel=1e-10)
    for seed in range(3):
        torch.manual_seed(seed)
        other = weights(es.project(shaken(copy.deepcopy(model), by=1e-3), onto))
        away = {name: before[name] - other[name] for name in before}
        assert dot(away, away) > dot(residual, residual)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("support", SUPPORTS)
def test_deviation_afterwards(row: Row, support: str) -> None:
    model = shaken(embedded_for(row, support))
    before = es.deviation(model)
    local = es.deviation(es.project(model, "lcn", backend=row.backend))
    assert (local.delta, local.off_local) == (0.0, 0.0)
    assert (local.tied, local.untied) == pytest.approx((before.tied, before.untied), rel=1e-12)
    assert local.bias_untied == before.bias_untied > 0.0
    tied = es.deviation(es.project(model, "cnn", backend=row.backend))
    assert (tied.delta, tied.untied, tied.off_local, tied.bias_untied) == (0.0, 0.0, 0.0, 0.0)
    assert tied.tied == pytest.approx(before.tied, rel=2 * torch.finfo(row.dtype).eps)


@pytest.mark.parametrize("row", rows(torch.float32) + rows(torch.float64, where=lambda backend: not backend.slow))
@pytest.mark.parametrize("support", SUPPORTS)
def test_unembedding_and_embedding_again_is_projecting(row: Row, support: str) -> None:
    model = shaken(embedded_for(row, support))
    x = example_for(row)
    again = state(es.embed(es.unembed(model), x, support=SUPPORTS[support]))
    projected = state(es.project(model, "cnn", backend=row.backend))
    assert projected.keys() == again.keys()
    for name, tensor in projected.items():
        torch.testing.assert_close(tensor, again[name], rtol=2 * torch.finfo(row.dtype).eps, atol=1e-9)
    round_trip = state(es.embed(es.unembed(model), x, support=SUPPORTS[support]))  # of what has been projected
    assert all(torch.equal(projected[name], round_trip[name]) for name in projected)


@pytest.mark.parametrize("row", rows(torch.float32))
@pytest.mark.parametrize("onto", ONTO)
def test_what_is_embedded_stays_where_it_is(row: Row, onto: str) -> None:
    model = embedded_for(row, "full")
    before = state(model)
    after = state(es.project(model, onto, backend=row.backend))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("row", rows(torch.float32))
def test_entries_outside_the_support_stay_zero(row: Row) -> None:
    model = es.project(shaken(embedded_for(row, "dilated")), "cnn", backend=row.backend)
    for module in model.modules():
        if isinstance(module, es.SparseLinear):
            inside = module.pattern.gather(torch.ones(module.pattern.shape, device=row.device))
            assert (inside == 0).any()
            assert not module.values[inside == 0].any()


@pytest.mark.parametrize("row", rows(torch.float32))
def test_biases_become_their_mean_over_positions(row: Row) -> None:
    model = shaken(embedded_for(row, "local"))
    layers = [m for m in model.modules() if hasattr(m, "ties") and m.linear.bias is not None]
    expected = [m.linear.bias.detach().view(-1, m.ties.kernel_shape[0]).mean(0) for m in layers]
    es.project(model, "cnn", backend=row.backend)
    for layer, mean in zip(layers, expected, strict=True):
        by_position = layer.linear.bias.detach().view(-1, layer.ties.kernel_shape[0])
        torch.testing.assert_close(by_position, mean.expand_as(by_position))
