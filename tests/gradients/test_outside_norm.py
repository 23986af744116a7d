"""Law 7: the gradient that falls outside the support is known without forming it."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.gradients import norms
from tests.growth.cases import NAMES, dense_gradient, factors, pattern, support
from tests.table import BFLOAT16, DTYPES, EMPTY_SHAPES


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("batch", [0, 1, 3, 40, 200])
@pytest.mark.parametrize("name", NAMES)
def test_against_dense(name: str, batch: int) -> None:
    p = pattern(name)
    dy, x = factors(p, batch)
    expected = dense_gradient(dy, x)[~support(p)].norm()
    result = es.outside_gradient_norm(dy, x, p)
    assert result.dtype == torch.float64
    assert result.dim() == 0
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: torch.dtype) -> None:
    p = pattern("masked-ragged")
    dy, x = factors(p, 7, dtype)
    torch.testing.assert_close(
        es.outside_gradient_norm(dy, x, p), dense_gradient(dy, x)[~support(p)].norm(), rtol=1e-10, atol=0
    )


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("way", ["_square_by_grams", "_square_by_tiles"])
@pytest.mark.parametrize("batch", [0, 1, 5, 50])
def test_both_ways_are_law_7(way: str, batch: int) -> None:
    a, b = torch.randn(batch, 13), torch.randn(batch, 19)
    expected = dense_gradient(a, b).square().sum()
    torch.testing.assert_close(getattr(norms, way)(a, b), expected, rtol=1e-12, atol=0)
    grams = (a.double() @ a.double().T) * (b.double() @ b.double().T)
    torch.testing.assert_close(grams.sum(), expected, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(("batch", "way"), [(9, "_square_by_grams"), (11, "_square_by_tiles")])
def test_takes_the_cheaper_way(batch: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_square_by_grams", "_square_by_tiles"):
        monkeypatch.setattr(norms, name, lambda a, b, name=name: taken.append(name))
    norms.product_square(torch.ones(batch, 20), torch.ones(batch, 20))  # equal at a batch of 10
    assert taken == [way]


def test_a_small_part_of_a_large_gradient_is_found() -> None:
    p = es.BlockPattern.from_mask(torch.tensor([[True, False]]), (4, 4), shape=(4, 8))
    dy, x = factors(p, 6)
    x[:, 4:] *= 1e-6
    expected = dense_gradient(dy, x)[:, 4:].norm()
    result = es.outside_gradient_norm(dy, x, p)
    assert float(expected / dense_gradient(dy, x).norm()) < 2e-6
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=0)  # 1e-8 of the whole


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_never_negative_and_zero_for_a_full_support(scale: float) -> None:
    p = pattern("masked")
    dy, x = factors(p, 5)
    dy = dy * scale
    inside = p.gather(dense_gradient(dy, x)).norm()
    assert float(es.outside_gradient_norm(dy, x, p, inside=inside * 1e6)) == 0.0
    full = es.BlockPattern.dense(p.shape, (8, 5))
    assert float(es.outside_gradient_norm(dy, x, full)) == 0.0


def test_a_known_inside_is_used() -> None:
    p = pattern("masked")
    dy, x = factors(p, 5)
    inside = p.gather(dense_gradient(dy, x)).norm()
    expected = es.outside_gradient_norm(dy, x, p)
    torch.testing.assert_close(es.outside_gradient_norm(dy, x, p, inside=inside), expected)
    torch.testing.assert_close(es.outside_gradient_norm(dy, x, p, inside=float(inside)), expected)
    whole = dense_gradient(dy, x).norm()
    torch.testing.assert_close(es.outside_gradient_norm(dy, x, p, inside=0.0), whole)


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty_matrices(shape: tuple[int, int]) -> None:
    p = es.BlockPattern.dense(shape, (4, 4))
    assert float(es.outside_gradient_norm(torch.ones(3, shape[0]), torch.ones(3, shape[1]), p)) == 0.0


def test_leading_dimensions_and_strides() -> None:
    p = pattern("masked")
    dy, x = factors(p, 12)
    expected = es.outside_gradient_norm(dy, x, p)
    shaped = es.outside_gradient_norm(dy.view(3, 4, -1), x.T.contiguous().T.reshape(3, 4, -1), p)
    torch.testing.assert_close(shaped, expected)


def test_nan_is_not_hidden() -> None:
    p = pattern("masked")
    dy, x = factors(p, 3)
    dy[0, 0] = torch.nan
    assert bool(es.outside_gradient_norm(dy, x, p).isnan())


def test_autocast_changes_nothing() -> None:
    p = pattern("masked")
    dy, x = factors(p, 3)
    expected = es.outside_gradient_norm(dy, x, p)
    with torch.autocast("cpu", BFLOAT16):
        assert torch.equal(es.outside_gradient_norm(dy, x, p), expected)
