"""A low-rank part is off-local weight: measured without forming it, and gone after a projection."""

import pytest
import torch

import efcn_sparse as es
from tests.oracle import dense
from tests.subspace.nets import cnn, shaken


def low_rank(support: es.LowRank, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    twin = shaken(es.embed(cnn().to(dtype), torch.zeros(1, 3, 12, 12, dtype=dtype), support=support))
    for layer in twin.modules():
        if getattr(layer, "low_rank", None) is not None:
            torch.nn.init.normal_(layer.low_rank.left, std=0.3)
    return twin


def whole(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored entries and the others of W, as dense matrices."""
    pattern = layer.linear.pattern
    product = layer.low_rank.left.detach().double() @ layer.low_rank.right.detach().double().T
    outside = dense(torch.ones(pattern.values_shape), pattern) == 0
    return dense(layer.linear.values, pattern), product * outside


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("support", [es.LowRank(3), es.LowRank(2, es.Dilated(1))], ids=str)
def test_norms(support, dtype):
    twin = low_rank(support, dtype)
    read = es.deviation(twin)
    for name, part in read.layers.items():
        stored, off = whole(twin.get_submodule(name))
        norm = (stored + off).norm().item()
        assert part.norm == pytest.approx(norm, rel=1e-6)
        assert part.norm**2 == pytest.approx(part.tied**2 + part.untied**2 + part.off_local**2)
        if support.start == es.Local():
            assert part.off_local == pytest.approx(off.norm().item(), rel=1e-6)
            assert part.delta == pytest.approx(off.norm().item() / norm, rel=1e-6)
    for layer in twin.modules():
        if getattr(layer, "low_rank", None) is not None:
            torch.nn.init.zeros_(layer.low_rank.left)
    assert es.deviation(twin).off_local < read.off_local
    assert support.start != es.Local() or es.deviation(twin).off_local == 0.0


@pytest.mark.parametrize("onto", ["cnn", "lcn"])
def test_projection(onto):
    twin = low_rank(es.LowRank(3, es.Dilated(1)), torch.float64)
    before = es.deviation(twin)
    es.project(twin, onto=onto)
    after = es.deviation(twin)
    assert after.off_local == after.delta == 0.0
    assert after.tied == pytest.approx(before.tied)
    assert (after.untied < 1e-9) if onto == "cnn" else after.untied == pytest.approx(before.untied)
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    es.project(twin, onto=onto)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-14, atol=1e-14)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    if onto == "cnn":
        torch.testing.assert_close(twin(x), es.unembed(twin)(x), rtol=1e-9, atol=1e-9)
