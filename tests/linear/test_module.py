"""SparseLinear behaves as any module does: copies, dtypes, devices, meta, printing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import efcn_sparse as es
from tests import oracle
from tests.oracle import assert_accurate
from tests.table import DTYPES, Row, pattern, rows


def _layer(name: str = "masked", **options: object) -> es.SparseLinear:
    torch.manual_seed(0)
    p = pattern(name)
    return es.SparseLinear(p.shape[1], p.shape[0], p, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("row", rows())
def test_forward_is_the_dense_layer(row: Row) -> None:
    layer = _layer("masked-ragged", dtype=row.dtype).to(row.device)
    layer.backend = row.backend
    x = torch.randn(2, 3, 43, dtype=row.dtype).to(row.device)
    y = layer(x)
    assert tuple(y.shape) == (2, 3, 29)
    assert_accurate(y.detach(), oracle.spmm(x, layer.values, layer.pattern, bias=layer.bias), "forward")


def test_a_deep_copy_is_on_its_own() -> None:
    layer = _layer()
    twin = copy.deepcopy(layer)
    assert twin.pattern is layer.pattern
    with torch.no_grad():
        twin.values.zero_()
        twin.bias.zero_()
    assert float(layer.values.detach().norm()) > 0
    assert float(layer.bias.detach().norm()) > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype(dtype: torch.dtype) -> None:
    for layer in (_layer().to(dtype), _layer(dtype=dtype)):
        assert (layer.values.dtype, layer.bias.dtype) == (dtype, dtype)
        assert layer(torch.ones(1, 48, dtype=dtype)).dtype == dtype
        assert layer.pattern is pattern("masked")


def test_the_default_dtype_counts() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert _layer().values.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_shorthands() -> None:
    assert _layer().half().values.dtype == torch.float16
    assert _layer().bfloat16().values.dtype == torch.bfloat16
    assert _layer().double().bias.dtype == torch.float64


def test_meta() -> None:
    layer = _layer(device="meta")
    assert (layer.values.is_meta, layer.bias.is_meta) == (True, True)
    assert layer.pattern == pattern("masked")
    y = layer(torch.empty(2, 3, 48, device="meta"))
    assert (y.device.type, tuple(y.shape)) == ("meta", (2, 3, 32))
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer(torch.ones(1, 48)), _materialized(layer)(torch.ones(1, 48)))
    assert _layer().to("meta").values.is_meta


def _materialized(layer: es.SparseLinear) -> es.SparseLinear:
    twin = _layer()
    twin.load_state_dict(layer.state_dict())
    return twin


def test_skip_init() -> None:
    layer = nn.utils.skip_init(es.SparseLinear, 48, 32, pattern("masked"))
    assert layer.values.device.type == "cpu"
    assert layer(torch.ones(1, 48)).shape == (1, 32)


def test_what_it_prints() -> None:
    assert repr(_layer("square", bias=False)) == (
        "SparseLinear(in_features=48, out_features=64, block_shape=(16, 16), nnz_blocks=6, density=0.5, bias=False)"
    )


def test_requires_grad_and_modes() -> None:
    layer = _layer().requires_grad_(False)
    assert not layer(torch.ones(1, 48)).requires_grad
    assert not layer.eval().training


def test_the_backend_is_the_layers_choice() -> None:
    layer = _layer()
    assert layer.backend == "auto"
    layer.backend = "nope"
    with pytest.raises(ValueError, match="backend must be 'auto' or one of"):
        layer(torch.ones(1, 48))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_the_pattern_follows_the_parameters() -> None:
    layer = _layer().cuda()
    assert layer.pattern.device == layer.values.device
    assert layer(torch.ones(1, 48, device="cuda")).is_cuda
    assert layer.cpu().pattern.device.type == "cpu"


def test_pruning_reaches_the_parameters() -> None:
    layer = _layer()
    mask = torch.rand(layer.values.shape) < 0.5
    expected = torch.where(mask, layer.values.detach(), 0.0)
    prune.custom_from_mask(layer, "values", mask)
    layer(torch.ones(1, 48)).sum().backward()
    assert torch.equal(layer.to_linear().weight, layer.pattern.to_dense(expected))
    assert bool((layer.values_orig.grad[~mask] == 0).all())
