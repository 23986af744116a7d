"""Bad input is refused by name before anything changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.subspace.plan import make_plan
from tests.refused import assert_refused
from tests.subspace.nets import embedded, shaken

PLAIN = nn.Sequential(nn.Linear(2, 2))
MAPS, STARTS, BLOCKS = (
    torch.zeros((2, 1, 1), dtype=torch.int32),
    torch.tensor([0, 1, 3], dtype=torch.int32),
    torch.tensor([1, 0, 2], dtype=torch.int32),
)

MODELS = [
    ("no model", TypeError, "model must be an nn.Module, got str"),
    (None, TypeError, "model must be an nn.Module, got NoneType"),
    (PLAIN, ValueError, "model holds no embedded convolution, got Sequential: embed it first"),
    (nn.Conv2d(1, 1, 1), ValueError, "model holds no embedded convolution, got Conv2d: embed it first"),
]

PLANS = [
    ((MAPS.long(), STARTS, BLOCKS), "maps must be int32 with 3 dimensions, got torch.int64 [2, 1, 1]"),
    ((MAPS[0], STARTS, BLOCKS), "maps must be int32 with 3 dimensions, got torch.int32 [1, 1]"),
    ((MAPS, STARTS[:, None], BLOCKS), "class_starts must be int32 with 1 dimensions, got torch.int32 [3, 1]"),
    ((MAPS, STARTS[:2], BLOCKS), "class_starts must be [3], got [2]"),
    ((MAPS, STARTS, BLOCKS[:2]), "class_starts must rise from 0 to the 2 blocks, got [0, 1, 3]"),
    ((MAPS, STARTS.flip(0), BLOCKS), "class_starts must rise from 0 to the 3 blocks, got [3, 1, 0]"),
    ((MAPS, STARTS, BLOCKS + 1), "blocks_by_class must hold each of the 3 blocks once"),
    ((MAPS, STARTS, BLOCKS - 1), "blocks_by_class must hold each of the 3 blocks once"),
    ((MAPS, STARTS, BLOCKS * 0), "blocks_by_class must hold each of the 3 blocks once"),
    ((MAPS - 3, STARTS, BLOCKS), "maps must be kernel entries, -1 or -2, got -3"),
]


@pytest.mark.parametrize(("model", "error", "message"), MODELS)
def test_models(model: Any, error: type[Exception], message: str) -> None:
    assert_refused(es.deviation, error, message, model)
    assert_refused(es.project, error, message, model, "cnn")


@pytest.mark.parametrize("onto", ["fcn", "CNN", None, 1])
def test_subspaces(onto: Any) -> None:
    model = shaken(embedded())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert_refused(es.project, ValueError, f"onto must be 'cnn' or 'lcn', got {onto!r}", model, onto)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_backends() -> None:
    message = "backend must be 'auto' or one of ['cpu', 'reference', 'triton'], got 'gpu'"
    assert_refused(es.deviation, ValueError, message, embedded(), backend="gpu")
    assert_refused(es.project, ValueError, message, embedded(), "cnn", backend="gpu")


def test_a_backend_that_cannot_run_is_refused_before_anything_changes() -> None:
    model = shaken(embedded())
    model[4].to("meta")
    before = model[0].linear.values.detach().clone()
    message = "model must hold numbers, got meta tensors in the embedded convolution '4'"
    assert_refused(es.deviation, ValueError, message, model)
    assert_refused(es.project, ValueError, message, model, "cnn")
    assert torch.equal(before, model[0].linear.values)


@pytest.mark.parametrize(("arrays", "message"), PLANS, ids=range(len(PLANS)))
def test_plans(arrays: tuple[torch.Tensor, ...], message: str) -> None:
    assert_refused(make_plan, ValueError, message, *arrays)
