"""Every block that is not stored gets the exact norm of its gradient, once, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import efcn_sparse as es
from efcn_sparse.fused import workspace
from efcn_sparse.growth import scores
from efcn_sparse.growth.scores import Scored
from tests.growth.cases import NAMES, block_norms, dense_gradient, factors, layer_of, pattern, stored_blocks


def gathered(scored) -> dict[int, float]:
    found: dict[int, float] = {}
    for part in scored:
        for block, square in zip(part.blocks.tolist(), part.squares.tolist(), strict=True):
            assert block not in found
            found[block] = square**0.5
    return found


def expected_scores(p: es.BlockPattern, dy: Tensor, x: Tensor) -> dict[int, float]:
    norms, stored = block_norms(dense_gradient(dy, x), p.block_shape), stored_blocks(p)
    return {
        r * p.grid[1] + c: float(norms[r, c])
        for r in range(p.grid[0])
        for c in range(p.grid[1])
        if (r, c) not in stored
    }


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cheaper", [True, False], ids=["grams", "products"])
@pytest.mark.parametrize("name", NAMES)
def test_against_dense(name: str, cheaper: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_grams_are_cheaper", lambda a, p: cheaper)
    p = pattern(name)
    dy, x = factors(p, 6, dtype)
    found, expected = gathered(scores.scores_outside(dy, x, p)), expected_scores(p, dy, x)
    assert found == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("name", NAMES)
def test_of_candidates(name: str) -> None:
    p = pattern(name)
    dy, x = factors(p, 6)
    norms = block_norms(dense_gradient(dy, x), p.block_shape)
    wanted = es.BlockPattern.random(p.shape, p.block_shape, 0.4, torch.Generator().manual_seed(1))
    expected = {r * p.grid[1] + c: float(norms[r, c]) for r, c in stored_blocks(wanted)}
    assert gathered(scores.scores_at(dy, x, wanted)) == pytest.approx(expected, rel=1e-5)


def test_the_cheaper_way() -> None:
    wide, narrow = es.BlockPattern.dense((256, 256), (64, 64)), es.BlockPattern.dense((256, 256), (4, 4))
    assert scores._grams_are_cheaper(torch.ones(100, 256), wide)
    assert not scores._grams_are_cheaper(torch.ones(100, 256), narrow)
    assert not scores._grams_are_cheaper(torch.ones(5000, 256), wide)


def test_exact_where_grams_cancel() -> None:
    """Two samples whose gradients cancel but for a millionth, beside a block that has only that millionth."""
    p = es.BlockPattern.from_mask(torch.tensor([[False, False, True]]), (8, 8), shape=(8, 24))
    dy, x = torch.ones(2, 8), torch.ones(2, 24)
    dy[1] = -1
    x[0, :8] += 2e-6
    x[0, 8:16] = x[1, 8:16] = 0
    x[0, 8] = 4e-5
    found = gathered(scores.scores_outside(dy, x, p))
    assert found == pytest.approx(expected_scores(p, dy, x), rel=1e-3)


class Largest(TorchDispatchMode):
    """The most elements that a tensor made inside has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize(("batch", "block"), [(4, (16, 16)), (64, (4, 4))], ids=["grams", "products"])
def test_the_dense_gradient_is_never_held(batch: int, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workspace.SCORING_BYTES, "cpu", 1 << 16)
    p = es.BlockPattern.random((512, 768), block, 0.02, torch.Generator().manual_seed(0))
    layer, (dy, x) = layer_of(p), factors(p, batch)
    with Largest() as largest:
        es.regrow(layer, dy, x, blocks=5)
        es.outside_gradient_norm(dy, x, layer.pattern)
    bound = max(dy.numel(), x.numel(), layer.values.numel(), (1 << 16) // 4)
    assert largest.elements <= bound < 512 * 768 // 4


@pytest.mark.parametrize("least", [1, 4, 1 << 16])
@pytest.mark.parametrize("most", [1, 3, 10, 40, 100])
def test_selection_is_a_sort(most: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_LEAST_PENDING", least)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randperm(60, generator=generator)
    squares = torch.randint(0, 12, (60,), generator=generator).double()  # many equals, some zeros
    parts = [Scored(b, s) for b, s in zip(positions.split(7), squares.split(7), strict=True)]
    best = scores.best_blocks(parts, most, torch.device("cpu"))
    ranked = sorted(zip((-squares).tolist(), positions.tolist(), strict=True))
    expected = [(block, -score) for score, block in ranked if score < 0][:most]
    assert list(zip(best.blocks.tolist(), best.squares.tolist(), strict=True)) == expected
