"""Law 6: training under a pattern that stores everything is training nn.Linear, step for step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests.table import FLOAT32, FLOAT64, Row, is_slow, rows

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum-and-decay": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2),
}
BLOCKS = ((8, 8), (5, 7), (1, 1), (64, 64))
STEPS = 12


def _dense_net(row: Row) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 10, bias=False), nn.ReLU(), nn.Linear(10, 5)).to(
        row.device, row.dtype
    )


def _sparse_twin(dense: nn.Sequential, block_shape: tuple[int, int], backend: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in dense:
        if isinstance(layer, nn.Linear):
            layer = es.SparseLinear.from_linear(layer, density=1.0, block_shape=block_shape)
            assert layer.pattern == BlockPattern.dense((layer.out_features, layer.in_features), block_shape)
            layer.backend = backend
        layers.append(layer)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32))
@pytest.mark.parametrize("block_shape", BLOCKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_step_for_step(row: Row, block_shape: tuple[int, int], optimizer: str) -> None:
    dense = _dense_net(row)
    sparse = _sparse_twin(dense, block_shape, row.backend)
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in (dense, sparse)]
    generator = torch.Generator().manual_seed(1)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if row.dtype == FLOAT64 else {"rtol": 2e-3, "atol": 2e-5}
    for _ in range(3 if is_slow(row) else STEPS):
        x = torch.randn(16, 20, generator=generator, dtype=row.dtype).to(row.device)
        target = torch.randint(5, (16,), generator=generator).to(row.device)
        losses = []
        for net, stepper in zip((dense, sparse), optimizers, strict=True):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(net(x), target)
            loss.backward()
            stepper.step()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], **tolerance)
        for one, other in zip(dense, sparse, strict=True):
            if isinstance(one, nn.Linear):
                assert isinstance(other, es.SparseLinear)
                torch.testing.assert_close(other.to_linear().weight, one.weight, **tolerance)
                torch.testing.assert_close(other.bias, one.bias, **tolerance) if one.bias is not None else None


@pytest.mark.parametrize("row", rows(FLOAT64))
def test_a_sparse_net_trains_as_a_masked_dense_one(row: Row) -> None:
    dense = _dense_net(row)
    generator = torch.Generator().manual_seed(2)
    masks = {i: torch.rand(dense[i].weight.shape, generator=generator).to(row.device) < 0.4 for i in (0, 2, 4)}
    twin = nn.Sequential(*dense)
    sparse = []
    for i, layer in enumerate(twin):
        if i in masks:
            pattern = BlockPattern.from_mask(masks[i], (4, 6))
            new = es.SparseLinear(layer.in_features, layer.out_features, pattern, layer.bias is not None)
            new = new.to(row.device, row.dtype)
            with torch.no_grad():
                layer.weight.mul_(masks[i])
                new.values.copy_(pattern.gather(layer.weight))
                if layer.bias is not None:
                    new.bias.copy_(layer.bias)
            new.backend = row.backend
            layer = new
        sparse.append(layer)
    nets = (dense, nn.Sequential(*sparse))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    for _ in range(3 if is_slow(row) else STEPS):
        x = torch.randn(16, 20, generator=generator, dtype=row.dtype).to(row.device)
        for net, stepper in zip(nets, optimizers, strict=True):
            stepper.zero_grad()
            net(x).square().mean().backward()
            if net is dense:
                for i, mask in masks.items():
                    dense[i].weight.grad.mul_(mask)
            stepper.step()
        torch.testing.assert_close(nets[1](x), nets[0](x), rtol=1e-9, atol=1e-11)
