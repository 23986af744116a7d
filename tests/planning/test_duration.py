"""An expected time is work over rates; what rates are measured on is the layer itself, or a smaller one like it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efcn_sparse.embedding import Dilated, Full, Grown, LayerPlan, Local, Support, plan
from efcn_sparse.embedding.geometry import ConvGeometry
from efcn_sparse.models import resnet18, vanilla_cnn
from efcn_sparse.planning import predict_step
from efcn_sparse.planning.duration import Rates, expected_time
from efcn_sparse.planning.live_memory import LiveMemory
from efcn_sparse.planning.probe import Probe
from efcn_sparse.planning.work import OperatorWork, Product, StepWork


def _probe(batch: int = 8) -> Probe:
    return Probe.of(plan(nn.Conv2d(4, 4, 3), torch.empty(1, 4, 6, 6)).layers[0], batch)


def test_products_take_the_longer_of_computing_and_moving() -> None:
    probe = _probe()
    work = StepWork(
        products=[
            Product("a", "forward", probe, flops=2_000, moved=10),
            Product("a", "dw", probe, flops=1_000, moved=3_000),
            Product("b", "dx", probe, flops=0, moved=500),
        ],
        operators={"relu": OperatorWork(calls=3, moved=1_000), "mm": OperatorWork(calls=1, flops=6_000, moved=1_000)},
        fresh=40,
    )
    rates = Rates({probe.key: {"forward": 100.0, "dx": 1.0, "dw": 1_000.0}}, 2_000.0, 500.0, 10.0, call=0.25)
    time = expected_time(work, rates)
    assert time.products == {"a": {"forward": 20.0, "dw": 6.0}, "b": {"dx": 1.0}}
    assert time.rest == 4.0 + (0.75 + 2.0) + (0.25 + 3.0)
    assert time.seconds == 27.0 + time.rest


def test_what_rates_lack_is_told_once() -> None:
    probe, other = _probe(), _probe(16)
    products = [Product("a", op, p, 1, 1) for p in (probe, other) for op in ("forward", "dx", "dw")]  # type: ignore[arg-type]
    rates = Rates({probe.key: {"forward": 1.0, "dx": 1.0}}, 1.0, 1.0, 1.0, 1.0)
    assert [lacking.key for lacking in rates.lacking(products)] == [probe.key, other.key]
    with pytest.raises(ValueError, match=f"^rates must have every product of the step, got none for {probe.key}$"):
        expected_time(StepWork(products=products), rates)


@pytest.mark.parametrize("support", [Local(), Dilated(2), Full(), Grown(1.5)], ids=str)
def test_probes_are_small_and_alike(support: Support) -> None:
    with torch.device("meta"):
        layers = plan(resnet18(), torch.empty(1, 3, 224, 224), support=support).layers
    for layer in layers:
        probe = Probe.of(layer, 64)
        kept = ("in_channels", "out_channels", "groups", "kernel_size", "stride", "padding", "dilation")
        assert all(getattr(probe.geometry, name) == getattr(layer.geometry, name) for name in kept)
        assert (probe.support, probe.block_shape, probe.dtype) == (layer.support, layer.block_shape, layer.dtype)
        least = max(probe.geometry.input_size) == 1
        assert least or support.least_numbers(probe.geometry) * 4 <= 24 << 20
        assert probe.geometry.in_features * probe.batch <= 1 << 24


def test_a_small_layer_is_its_own_probe() -> None:
    layer = plan(vanilla_cnn(), torch.empty(1, 3, 32, 32)).layers[1]
    assert Probe.of(layer, 64).geometry == layer.geometry
    assert Probe.of(layer, 1 << 20).batch < 1 << 20


@pytest.mark.parametrize("conv", [nn.Conv1d(64, 64, 5, groups=2), nn.Conv3d(1, 2, (1, 3, 5), padding=2)])
def test_probes_of_any_convolution(conv: nn.Module) -> None:
    side = 5_000 if isinstance(conv, nn.Conv1d) else 150
    geometry = ConvGeometry.of(conv, (side,) * len(conv.kernel_size))  # type: ignore[arg-type]
    probe = Probe.of(LayerPlan("conv", geometry, Local(), (4, 4), torch.float32, 1), 2)
    assert 1 < max(probe.geometry.input_size) < side
    assert 4 * probe.geometry.local_weights <= 24 << 20


def test_a_step_tells_its_work() -> None:
    work = predict_step(vanilla_cnn(), torch.randn(7, 3, 32, 32)).work
    told = [(product.layer, product.operation) for product in work.products]
    assert sorted(told) == sorted(
        [("0", "forward"), ("0", "dw"), *((name, op) for name in "36" for op in ("forward", "dx", "dw"))]
    )
    assert work.operators["relu"].calls == work.operators["threshold_backward"].calls == 3
    assert work.operators["addmm"].flops == 2 * 7 * 64 * 10
    assert work.fresh == 0
    large = predict_step(vanilla_cnn(), torch.empty(7, 3, 32, 32), support=Full()).work
    assert large.fresh >= 4 * (56_819_712 + 16_777_216)  # two gradients above 32 MiB


def test_fresh_memory_is_what_the_allocator_does_not_keep() -> None:
    memory = LiveMemory()
    held = torch.empty(100 << 20, dtype=torch.uint8, device="meta")
    memory.follow(held)
    memory.restart()
    assert (memory.fresh, memory.peak) == (0, 100 << 20)
    small = [torch.empty(10 << 20, dtype=torch.uint8, device="meta") for _ in range(6)]
    for tensor in small:
        memory.follow(tensor)
    assert memory.fresh == 0  # 60 MiB stay in the heap
    more = torch.empty(9 << 20, dtype=torch.uint8, device="meta")
    memory.follow(more)
    assert memory.fresh == 5 << 20
    del small, more, tensor
    large = torch.empty(40 << 20, dtype=torch.uint8, device="meta")
    memory.follow(large)
    assert memory.fresh == 45 << 20
    assert memory.held == 140 << 20


def test_fused_updates_are_work() -> None:
    x = torch.randn(4, 3, 32, 32)
    work = predict_step(vanilla_cnn(), x, optimizer="momentum", fused=True).work
    weights = 4 * sum(layer.stored_weights for layer in plan(vanilla_cnn(), x).layers)
    assert (work.operators["fused update"].calls, work.operators["fused update"].moved) == (3, 4 * weights)
    assert "fused update" not in predict_step(vanilla_cnn(), x).work.operators
