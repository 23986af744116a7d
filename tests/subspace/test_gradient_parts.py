"""The parts of the gradient against the gradient of the dense matrix, split entry by entry."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.embedding.ties import OFF_LOCAL
from efcn_sparse.fused import updating
from efcn_sparse.subspace import GradientParts, gradient_parts, record_gradient_parts
from tests.subspace.brute_force import CASES, OUTSIDE, Conv, element_map
from tests.subspace.nets import SUPPORTS, embedded, shaken

X, LABELS = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1, 2, 3, 0, 1])


def loss_of(model: nn.Module) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return 10 * nn.functional.cross_entropy(model(X.to(dtype)), LABELS)


def read(model: nn.Module) -> GradientParts:
    with record_gradient_parts(model) as parts:
        loss_of(model).backward()
    return parts


def squares(parts) -> np.ndarray:
    return np.square([parts.local, parts.off_local, parts.outside])


def layer_of(conv: Conv) -> EmbeddedConv:
    (c_in, c_out), support = conv.channels, {"local": es.Local(), "dilated1": es.Dilated(1), "full": es.Full()}
    torch.manual_seed(1)
    plain = nn.Conv2d(c_in, c_out, conv.kernel, conv.stride, conv.padding, conv.dilation, conv.groups)
    return EmbeddedConv.from_conv(plain.double(), conv.size, support[conv.support], conv.block)


@pytest.mark.parametrize("few", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("case", CASES)
def test_every_geometry_against_the_dense_gradient_in_fp64(case, few, monkeypatch):
    if few:
        monkeypatch.setattr(gradient_parts, "workspace_bytes", lambda device: 1 << 10)
    layer, entries = layer_of(CASES[case]), element_map(CASES[case])
    torch.manual_seed(2)
    a, b = torch.randn(7, entries.shape[0]).double(), torch.randn(7, entries.shape[1]).double()
    dense = (a.T @ b).numpy() ** 2
    expected = [dense[entries >= 0].sum(), dense[entries == OFF_LOCAL].sum(), dense[entries == OUTSIDE].sum()]
    got = gradient_parts.gradient_squares(a, b, layer).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * dense.sum())
    fp32 = gradient_parts.gradient_squares(a.float(), b.float(), layer).numpy()
    np.testing.assert_allclose(fp32, expected, rtol=1e-5, atol=3e-7 * dense.sum())


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_whole_net_against_dense_layers_in_fp64(support):
    model = shaken(embedded(support, torch.float64))
    dense = copy.deepcopy(model)
    weights = {}
    for name, layer in dense.named_modules():
        if isinstance(layer, EmbeddedConv):
            weights[name] = layer.linear = layer.linear.to_linear()
    loss_of(dense).backward()
    parts = read(model)
    assert list(parts.layers) == list(weights)
    everything = np.zeros(3)
    for name, linear in weights.items():
        layer, square = model.get_submodule(name), linear.weight.grad.square()
        maps = layer.ties.maps[layer.ties.class_of_block.long()]
        held = layer.linear.pattern.to_dense((maps != OUTSIDE).double()) > 0
        local = layer.linear.pattern.to_dense((maps >= 0).double()) > 0
        expected = [float(square[local].sum()), float(square[held & ~local].sum()), float(square[~held].sum())]
        np.testing.assert_allclose(squares(parts.layers[name]), expected, rtol=1e-10, atol=1e-12 * float(square.sum()))
        assert squares(parts.layers[name]).sum() == pytest.approx(float(square.sum()), rel=1e-12)
        everything += expected
    np.testing.assert_allclose(squares(parts.total), everything, rtol=1e-10, atol=1e-12 * everything.sum())
    assert parts.total.leak == pytest.approx(everything[2] / everything.sum(), abs=1e-12)
    assert parts.total.captured == pytest.approx(everything[1] / everything[1:].sum(), abs=1e-12)


def test_what_full_and_local_supports_hold_is_exact():
    for support in ("full", "local"):
        parts = read(shaken(embedded(support)))
        for one in (parts.total, *parts.layers.values()):
            assert squares(one)[0] > 0
            if support == "full":
                assert (one.outside, one.leak, one.captured) == (0.0, 0.0, 1.0)
                assert one.off_local > 0
            else:
                assert (one.off_local, one.captured) == (0.0, 0.0)
                assert 0 < one.leak < 1


def test_it_agrees_with_record_leak():
    model = shaken(embedded("dilated"))
    parts = read(model)
    model.zero_grad()
    with es.record_leak(model) as leak:
        loss_of(model).backward()
    for name, one in parts.layers.items():
        assert one.leak == pytest.approx(leak.layers[f"{name}.linear"].share, abs=1e-9)
        assert math.hypot(one.local, one.off_local) == pytest.approx(leak.layers[f"{name}.linear"].inside, rel=1e-9)
    assert parts.total.leak == pytest.approx(leak.share, abs=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_training_is_not_changed_by_a_bit(fused):
    def trained(record: bool) -> tuple[nn.Module, list[float]]:
        model, seen = shaken_alike(), []
        make = lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)  # noqa: E731
        optimizer = es.FusedOptimizer(model, make) if fused else make(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            with updating(optimizer):
                if record:
                    seen.append(read(model).total.leak)
                else:
                    loss_of(model).backward()
            optimizer.step()
        return model, seen

    def shaken_alike() -> nn.Module:
        torch.manual_seed(7)
        return shaken(embedded("dilated"))

    (plain, _), (recorded, seen) = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), recorded.parameters(), strict=True))
    assert len(set(seen)) == 3
    if fused:
        assert seen == _unfused_leaks(shaken_alike())


def _unfused_leaks(model: nn.Module) -> list[float]:
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), []
    for _ in range(3):
        optimizer.zero_grad()
        seen.append(read(model).total.leak)
        optimizer.step()
    return seen


def test_a_layer_that_is_used_twice_has_the_parts_of_its_whole_gradient():
    layer = es.embed(nn.Conv2d(4, 4, 3, padding=1).double(), torch.zeros(1, 4, 5, 5).double(), support=es.Dilated(1))
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(3, 4, 5, 5).double()
    with record_gradient_parts(model) as parts:
        model(x).square().sum().backward()
    (one,) = parts.layers.values()
    inside = float(layer.linear.values.grad.norm())
    assert math.hypot(one.local, one.off_local) == pytest.approx(inside, rel=1e-12)


def test_other_sparse_layers_do_not_count():
    model = nn.Sequential(embedded("dilated")[0], nn.Flatten(), es.SparseLinear.from_linear(
        nn.Linear(8 * 49, 4), density=0.5, block_shape=(2, 8)))  # fmt: skip
    with record_gradient_parts(model) as parts:
        model(X).sum().backward()
    assert list(parts.layers) == ["0"]


def test_a_gradient_of_zero_leaks_nothing_and_captures_nothing_that_has_a_number():
    model = embedded("dilated")
    with record_gradient_parts(model) as parts:
        (0 * model(X)).sum().backward()
    assert parts.total.leak == 0.0
    assert math.isnan(parts.total.captured)


def test_what_cannot_be_read_is_told():
    with pytest.raises(ValueError, match="model holds no embedded convolution"), record_gradient_parts(nn.Linear(2, 2)):
        pass
    model = embedded("local")
    with (
        pytest.raises(RuntimeError, match="must hold the forward and the backward pass, got no gradient"),
        record_gradient_parts(model),
    ):
        model(X)
    with record_gradient_parts(model):
        loss_of(model).backward()
        again = loss_of(model)
        with pytest.raises(RuntimeError, match="must get one gradient within record_gradient_parts, got a second"):
            again.backward()
