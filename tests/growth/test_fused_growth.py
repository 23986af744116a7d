"""A fused optimizer whose blocks move gives what the unfused one gives, bit by bit."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.fused import layer_update
from tests.growth.nets import OPTIMIZERS, assert_same, growing_net, train
from tests.table import rows


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(layer_update.WORKSPACE_BYTES, "cpu", 4096)


@pytest.mark.parametrize("row", rows(torch.float32, where=lambda backend: backend.name in ("reference", "cpu")))
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_by_bit(row, name: str) -> None:
    plain, fused = growing_net(backend=row.backend), growing_net(backend=row.backend)
    first, second = OPTIMIZERS[name](plain.parameters()), es.FusedOptimizer(fused, OPTIMIZERS[name])
    slices = {layer: len(update._cut.slices) for layer, update in second._updates.items()}
    assert min(slices.values()) > 1
    one = train(plain, first, es.Growth(plain, first, every=2), range(9))
    two = train(fused, second, es.Growth(fused, second, every=2), range(9))
    assert one == two
    assert sum(min(step.values(), default=0) for step in one) > 10
    assert_same(plain, fused)


def test_clipping_in_two_passes() -> None:
    plain, fused = growing_net(), growing_net()
    made = OPTIMIZERS["momentum"]

    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            return super().step(closure)

    first = Clipped(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    second = es.FusedOptimizer(fused, made, max_norm=0.5)
    train(plain, first, es.Growth(plain, first, every=2), range(7))
    train(fused, second, es.Growth(fused, second, every=2), range(7))
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_masters_move_with_their_values() -> None:
    """The fp32 masters of bf16 values know more than their roundings: bf16 values alone would lose it."""
    model = growing_net(dtype=torch.bfloat16)
    optimizer = es.FusedOptimizer(model, OPTIMIZERS["momentum"], precision="master")
    train(model, optimizer, es.Growth(model, optimizer, every=100), range(3), torch.bfloat16)
    layer = model.get_submodule("2")

    def masters() -> torch.Tensor:
        return optimizer.state[layer.linear.values]["master"].clone()

    before = masters()
    assert before.dtype == torch.float32
    assert not torch.equal(before, layer.linear.values.float())
    generator = torch.Generator().manual_seed(5)
    dy = torch.randn((9, layer.geometry.out_features), generator=generator).bfloat16()
    x = torch.randn((9, layer.geometry.in_features), generator=generator).bfloat16()
    done = es.regrow(layer, dy, x, blocks=7)
    after = masters()
    for old, block in zip(done.source.tolist(), after, strict=True):
        assert torch.equal(block, before[old] if old >= 0 else torch.zeros_like(block))
    assert torch.equal(after.bfloat16(), layer.linear.values)


def test_state_of_each_block_by_its_place() -> None:
    """Momentum before and after one exchange, block by block."""
    model = growing_net()
    optimizer = es.FusedOptimizer(model, OPTIMIZERS["momentum"])
    growth = es.Growth(model, optimizer, every=100)
    train(model, optimizer, growth, range(3))
    layer, update = model.get_submodule("2"), optimizer._updates["2.linear"]

    def buffers() -> torch.Tensor:
        whole = optimizer.state[layer.linear.values]["momentum_buffer"]
        slices = [update.optimizer.state[parameter]["momentum_buffer"] for parameter in update._parameters]
        assert torch.equal(whole, torch.cat(slices))
        assert slices[-1].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        return whole.clone()

    before, generator = buffers(), torch.Generator().manual_seed(5)
    dy = torch.randn((9, layer.geometry.out_features), generator=generator)
    x = torch.randn((9, layer.geometry.in_features), generator=generator)
    done = es.regrow(layer, dy, x, blocks=7)
    after = buffers()
    for old, block in zip(done.source.tolist(), after, strict=True):
        assert torch.equal(block, before[old] if old >= 0 else torch.zeros_like(block))
    assert int((done.source < 0).sum()) == 7


def test_several_groups_for_a_layer_are_refused() -> None:
    model = growing_net()
    with pytest.raises(ValueError, match=r"^0.linear: make must give one parameter group for the values"):
        es.FusedOptimizer(model, lambda p: torch.optim.SGD([{"params": [q]} for q in p], lr=0.1))
    assert model.get_submodule("0").linear.product is None
