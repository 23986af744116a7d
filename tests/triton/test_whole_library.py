"""What is built on the operations keeps its laws with every backend, on the device of its row."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.embedding import OUTSIDE, EmbeddedConv
from efcn_sparse.fused import layer_update, updating
from tests.embedding.convolutions import CASES
from tests.growth.cases import block_norms, dense_gradient, masked_and_whole, stored_blocks, support
from tests.table import FLOAT32, FLOAT64, Row, rows

EXACT = {"rtol": 1e-11, "atol": 1e-11}
NAMES = ("rgb", "24-channels", "1d")


def _embedded(name: str, row: Row) -> tuple[nn.Module, EmbeddedConv, torch.Tensor]:
    """A convolution, its embedding on the row's backend, and an input."""
    case = CASES[name]
    conv, x = case.conv(row.dtype).to(row.device), case.example(2, row.dtype).to(row.device)
    layer = EmbeddedConv.from_conv(conv, case.size, case.support, case.block_shape)
    layer.linear.backend = row.backend
    return conv, layer, x


@pytest.mark.parametrize("row", rows(FLOAT64))
@pytest.mark.parametrize("name", NAMES)
def test_an_embedded_convolution_computes_what_the_convolution_does(row: Row, name: str) -> None:
    """Laws 3 and 4: the output, the gradient of the input, and the kernel's gradient as the sum over its copies."""
    conv, layer, x = _embedded(name, row)
    x.requires_grad_()
    expected, got = conv(x), layer(x)
    torch.testing.assert_close(got, expected, **EXACT)
    dy = torch.randn(expected.shape, dtype=row.dtype).to(row.device)
    dx, dkernel = torch.autograd.grad(expected, (x, conv.weight), dy)
    own_dx, dvalues = torch.autograd.grad(got, (x, layer.linear.values), dy)
    torch.testing.assert_close(own_dx, dx, **EXACT)
    entries = layer.ties.maps[layer.ties.class_of_block.long()].long()
    copied = entries >= 0
    summed = dvalues.new_zeros(dkernel.numel()).index_put_((entries[copied],), dvalues[copied], accumulate=True)
    torch.testing.assert_close(summed.view_as(dkernel), dkernel, **EXACT)
    assert not bool(dvalues[entries == OUTSIDE].any())


@pytest.mark.parametrize("row", rows(FLOAT32))
@pytest.mark.parametrize("name", NAMES)
def test_back_to_the_same_convolution(row: Row, name: str) -> None:
    conv, layer, _ = _embedded(name, row)
    back = es.unembed(layer)
    assert torch.equal(back.weight, conv.weight)
    assert conv.bias is None or torch.equal(back.bias, conv.bias)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_entries_outside_the_support_stay_zero(row: Row) -> None:
    case = CASES["24-channels"]
    layer = EmbeddedConv.from_conv(case.conv(row.dtype), case.size, case.support, (16, 16)).to(row.device)
    layer.linear.backend = row.backend
    outside = layer.ties.maps[layer.ties.class_of_block.long()] == OUTSIDE
    assert bool(outside.any())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        layer(case.example(2, row.dtype).to(row.device)).square().mean().backward()
        optimizer.step()
    assert not bool(layer.linear.values[outside].any())


def _net(row: Row) -> nn.Sequential:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    first = es.BlockPattern.from_mask(torch.rand((26, 21), generator=generator) < 0.5, (8, 4))
    second = es.BlockPattern.random((17, 26), (8, 8), 0.6, generator)
    net = nn.Sequential(es.SparseLinear(21, 26, first), nn.Tanh(), es.SparseLinear(26, 17, second))
    for layer in (net[0], net[2]):
        layer.backend = row.backend
    return net.to(row.device, row.dtype)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_fused_updates_are_the_unfused_ones(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, row.device, 1024)  # several slices even in small layers
    plain, fused = _net(row), _net(row)
    fused.load_state_dict(plain.state_dict())

    def make(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)  # type: ignore[arg-type]

    for net, optimizer in ((plain, make(plain.parameters())), (fused, es.FusedOptimizer(fused, make))):
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            optimizer.zero_grad()
            with updating(optimizer):
                net(torch.randn(9, 21, generator=generator).to(row.device)).square().sum().backward()
            optimizer.step()
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_the_leak_is_that_of_the_dense_gradient(row: Row) -> None:
    layer, x = _net(row)[0], torch.randn(9, 21, dtype=row.dtype).to(row.device)
    with es.record_leak(layer) as leak:
        layer(x).square().sum().backward()
    dense = layer.to_linear()
    dense(x).square().sum().backward()
    gradient, inside = dense.weight.grad.cpu().double(), support(layer.pattern.to("cpu"))
    assert leak.outside == pytest.approx(float(gradient[~inside].norm()), rel=1e-4)
    assert leak.inside == pytest.approx(float(gradient[inside].norm()), rel=1e-4)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_regrowing_exchanges_blocks_by_the_dense_gradient(row: Row) -> None:
    p = masked_and_whole()
    layer = es.SparseLinear(p.shape[1], p.shape[0], p.to(row.device), dtype=row.dtype, device=row.device)
    layer.backend = row.backend
    dy, x = (torch.randn(9, side, dtype=row.dtype) for side in p.shape)
    norms, stored = block_norms(dense_gradient(dy, x), p.block_shape), stored_blocks(p)
    free = [(r, c) for r in range(p.grid[0]) for c in range(p.grid[1]) if (r, c) not in stored]
    done = es.regrow(layer, dy.to(row.device), x.to(row.device), blocks=3)
    assert [tuple(at) for at in done.grown.tolist()] == sorted(free, key=lambda at: -float(norms[at]))[:3]
    assert layer.pattern.device == layer.values.device
    twin = copy.deepcopy(layer).to("cpu")
    twin.backend = "reference"
    y = layer(x.to(row.device))
    torch.testing.assert_close(y.cpu(), twin(x), rtol=1e-4, atol=1e-5)
