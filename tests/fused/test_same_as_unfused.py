"""A fused optimizer gives what the same optimizer gives unfused, bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.fused import layer_update, updating
from tests.table import rows

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


def net(backend: str, seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    first = es.BlockPattern.from_mask(torch.rand((70, 45), generator=generator) < 0.5, (8, 4))
    second = es.BlockPattern.random((33, 70), (16, 16), 0.5, generator)
    model = nn.Sequential(es.SparseLinear(45, 70, first), nn.Tanh(), es.SparseLinear(70, 33, second), nn.Linear(33, 5))
    for layer in (model[0], model[2]):
        layer.backend = backend
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, max_norm: float | None = None) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn((9, 45), generator=generator), torch.randint(0, 5, (9,), generator=generator)
        optimizer.zero_grad()
        with updating(optimizer):
            (10 * nn.functional.cross_entropy(model(x), y)).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 2048)  # several slices even in small layers


# the interpreter of Triton takes 10 s for each of these
@pytest.mark.parametrize("row", rows(torch.float32, where=lambda backend: backend.name in ("reference", "cpu")))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_by_bit(row, name: str) -> None:
    backend = row.backend
    plain, fused = net(backend), net(backend)
    fused.load_state_dict(plain.state_dict())
    optimizer = es.FusedOptimizer(fused, OPTIMIZERS[name])
    assert all(len(update._cut.slices) > 1 for update in optimizer._updates.values())
    train(plain, OPTIMIZERS[name](plain.parameters()), steps=7)
    train(fused, optimizer, steps=7)
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_clipping(name: str) -> None:
    plain, fused = net("auto"), net("auto")
    fused.load_state_dict(plain.state_dict())
    train(plain, OPTIMIZERS[name](plain.parameters()), steps=5, max_norm=0.3)
    train(fused, es.FusedOptimizer(fused, OPTIMIZERS[name], max_norm=0.3), steps=5)
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_clipping_bites() -> None:
    clipped, free = net("auto"), net("auto")
    free.load_state_dict(clipped.state_dict())
    train(clipped, es.FusedOptimizer(clipped, OPTIMIZERS["sgd"], max_norm=0.3), steps=1)
    train(free, es.FusedOptimizer(free, OPTIMIZERS["sgd"]), steps=1)
    assert not torch.equal(clipped[0].values, free[0].values)


def test_resumes_from_its_state_dict() -> None:
    whole, first, second = net("auto"), net("auto"), net("auto")
    for model in (first, second):
        model.load_state_dict(whole.state_dict())
    train(whole, es.FusedOptimizer(whole, OPTIMIZERS["adamw"]), steps=3)
    optimizer = es.FusedOptimizer(first, OPTIMIZERS["adamw"])
    train(first, optimizer, steps=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = es.FusedOptimizer(second, OPTIMIZERS["adamw"])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn((9, 45), generator=generator), torch.randint(0, 5, (9,), generator=generator))
               for _ in range(3)]  # fmt: skip
    x, y = batches[2]
    with resumed.updating():
        (10 * nn.functional.cross_entropy(second(x), y)).backward()
    resumed.step()
    for mine, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_scheduler_reaches_the_values() -> None:
    model = net("auto")
    optimizer = es.FusedOptimizer(model, OPTIMIZERS["sgd"])
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    train(model, optimizer, steps=1)
    scheduler.step()
    before = model[0].values.detach().clone()
    train(model, optimizer, steps=1)
    assert torch.equal(model[0].values, before)


def test_an_embedded_cnn_trains_the_same() -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.Flatten())
    x, target = torch.randn(5, 3, 8, 8), torch.randn(5, 64)
    plain, fused = (es.embed(cnn, x, support=es.Dilated(1)) for _ in range(2))
    for model, optimizer in (
        (plain, torch.optim.SGD(plain.parameters(), lr=0.1)),
        (fused, es.FusedOptimizer(fused, lambda p: torch.optim.SGD(p, lr=0.1))),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            with updating(optimizer):
                nn.functional.mse_loss(model(x), target).backward()
            optimizer.step()
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    assert es.deviation(fused).off_local > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_under_autocast(name: str, max_norm: float | None) -> None:
    """bf16 factors and fp32 values: the gradient has bf16's roundings, fused as unfused."""
    plain, fused = net("auto"), net("auto")
    fused.load_state_dict(plain.state_dict())
    optimizer = es.FusedOptimizer(fused, OPTIMIZERS[name], max_norm=max_norm)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):  # or dense layers keep their first copies
        train(plain, OPTIMIZERS[name](plain.parameters()), steps=5, max_norm=max_norm)
        train(fused, optimizer, steps=5)
    bounds = dict(rtol=0, atol=0) if max_norm is None else dict(rtol=2e-3, atol=1e-6)
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **bounds)
