"""From nn.Linear and back to it, and to torch's BSR."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import DTYPES, PATTERNS, pattern

BLOCKS = ((8, 8), (5, 7), (1, 1), (64, 64))


@pytest.mark.parametrize("block_shape", BLOCKS)
@pytest.mark.parametrize("density", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_from_linear_keeps_the_strongest_blocks(block_shape: tuple[int, int], density: float, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(30, 42, bias=bias)
    layer = es.SparseLinear.from_linear(linear, density=density, block_shape=block_shape, cover=False)
    p, (height, width) = layer.pattern, block_shape
    assert p.nnz_blocks == round(density * p.grid[0] * p.grid[1])
    stored = BlockPattern.dense(p.shape, p.block_shape)
    norms = stored.gather(linear.weight.detach()).double().square().sum((1, 2)).view(p.grid)
    kept = torch.zeros(p.grid, dtype=torch.bool)
    kept[p.rows_of_blocks().long(), p.col_indices.long()] = True
    if 0 < p.nnz_blocks < kept.numel():
        assert float(norms[kept].min()) >= float(norms[~kept].max())
    expected = torch.where(
        kept.repeat_interleave(height, 0).repeat_interleave(width, 1)[:42, :30], linear.weight.detach(), 0.0
    )
    assert torch.equal(layer.to_linear().weight, expected)
    assert (layer.bias is None) == (linear.bias is None)
    if linear.bias is not None:
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias.data_ptr() != linear.bias.data_ptr()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("bias", [False, True])
def test_to_linear_computes_the_same(name: str, bias: bool) -> None:
    p = pattern(name)
    layer = es.SparseLinear(p.shape[1], p.shape[0], p, bias, dtype=torch.float64)
    linear = layer.to_linear()
    x = torch.randn(4, p.shape[1], dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x))
    assert type(linear) is nn.Linear
    assert linear.weight.requires_grad
    assert torch.equal(linear.weight, oracle.dense(layer.values, p))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_and_mode_come_along(dtype: torch.dtype) -> None:
    linear = nn.Linear(16, 16, dtype=dtype).eval()
    layer = es.SparseLinear.from_linear(linear, density=0.5, block_shape=(4, 4))
    assert (layer.values.dtype, layer.bias.dtype, layer.training) == (dtype, dtype, False)
    assert (layer.to_linear().weight.dtype, layer.to_linear().training) == (dtype, False)


@pytest.mark.parametrize("name", [name for name in PATTERNS if not pattern(name).is_ragged])
def test_weight_bsr_shares_the_memory_of_values_unless_blocks_are_masked(name: str) -> None:
    p = pattern(name)
    layer = es.SparseLinear(p.shape[1], p.shape[0], p, dtype=torch.float64)
    torch.nn.init.normal_(layer.values)  # outside the support too
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta state.*")
        matrix = layer.weight_bsr()
    assert matrix.layout == torch.sparse_bsr
    assert torch.equal(matrix.to_dense(), layer.to_linear().weight)
    shared = not name.startswith("masked")
    with torch.no_grad():
        layer.values.mul_(2)
    assert torch.equal(matrix.to_dense() * (1 if shared else 2), layer.to_linear().weight)


def test_weight_bsr_of_a_ragged_layer() -> None:
    p = pattern("ragged")
    with pytest.raises(ValueError, match=r"^pattern must have sides that are multiples of its block"):
        es.SparseLinear(37, 35, p).weight_bsr()


def test_weight_is_the_dense_matrix_with_its_gradient() -> None:
    p = pattern("masked-ragged")
    layer = es.SparseLinear(43, 29, p, dtype=torch.float64)
    assert torch.equal(layer.weight, layer.to_linear().weight)
    cotangent = torch.randn(29, 43, dtype=torch.float64)
    layer.weight.backward(cotangent)
    assert torch.equal(layer.values.grad, p.gather(cotangent))
    assert "weight" not in dict(layer.named_parameters())


def test_frozen_parameters_stay_frozen() -> None:
    linear = torch.nn.Linear(16, 8)
    linear.weight.requires_grad_(False)
    layer = es.SparseLinear.from_linear(linear, density=0.5, block_shape=(4, 4))
    back = layer.to_linear()
    assert [p.requires_grad for p in (layer.values, layer.bias, back.weight, back.bias)] == [False, True, False, True]
