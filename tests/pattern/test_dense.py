"""``to_dense`` places the stored blocks, ``gather`` takes them back: each is the other's adjoint."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from tests import oracle
from tests.table import PATTERNS, pattern


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_to_dense_places_blocks(name: str, dtype: torch.dtype) -> None:
    p = pattern(name)
    values = torch.randn(p.values_shape, dtype=dtype)
    values[~oracle.support_of(p)] = float("nan")
    weight = p.to_dense(values)
    assert weight.dtype == dtype
    assert weight.is_contiguous()
    assert torch.equal(weight.double(), oracle.dense(values, p))


@pytest.mark.parametrize("name", PATTERNS)
def test_gather_takes_blocks(name: str) -> None:
    p, weight = pattern(name), torch.randn(pattern(name).shape, dtype=torch.float64)
    assert torch.equal(p.gather(weight), oracle.at_blocks(weight, p))
    assert torch.equal(p.gather(weight.T.contiguous().T), oracle.at_blocks(weight, p))


@pytest.mark.parametrize("name", PATTERNS)
def test_round_trip(name: str) -> None:
    p = pattern(name)
    values = torch.where(oracle.support_of(p), torch.randn(p.values_shape), 0.0)
    assert torch.equal(p.gather(p.to_dense(values)), values)


@pytest.mark.parametrize("name", PATTERNS)
def test_adjoint(name: str) -> None:
    p = pattern(name)
    values, weight = torch.randn(p.values_shape, dtype=torch.float64), torch.randn(p.shape, dtype=torch.float64)
    assert float((p.to_dense(values) * weight).sum()) == pytest.approx(float((values * p.gather(weight)).sum()))


@pytest.mark.parametrize("name", ["one-block", "entries", "ragged-rows", "larger-than-the-matrix", "empty"])
def test_gradients_are_each_other(name: str) -> None:
    p = pattern(name)
    values = torch.randn(p.values_shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(p.shape, dtype=torch.float64, requires_grad=True)
    cotangent, block_cotangent = torch.randn(p.shape, dtype=torch.float64), torch.randn_like(values)
    (dvalues,) = torch.autograd.grad(p.to_dense(values), values, cotangent)
    assert torch.equal(dvalues, p.gather(cotangent))
    (dweight,) = torch.autograd.grad(p.gather(weight), weight, block_cotangent)
    assert torch.equal(dweight, p.to_dense(block_cotangent))


def test_gradcheck() -> None:
    p = pattern("larger-than-the-matrix")
    assert gradcheck(p.to_dense, torch.randn(p.values_shape, dtype=torch.float64, requires_grad=True))
    assert gradcheck(p.gather, torch.randn(p.shape, dtype=torch.float64, requires_grad=True))
