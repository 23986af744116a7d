"""A density map counts the blocks of the pattern, cell by cell, without the pattern."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from efcn_sparse.embedding import Dilated, Full, Grown, LayerPlan, Local, Support, plan
from efcn_sparse.models import resnet18
from efcn_sparse.planning.density import density_map

CONVS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (4, 9, 7)),
    "strided, in groups": (nn.Conv2d(4, 4, 3, stride=2, groups=2), (4, 12, 11)),
    "one dimension": (nn.Conv1d(3, 5, 4, dilation=2), (3, 40)),
}


def _layer(name: str, support: Support) -> LayerPlan:
    conv, size = CONVS[name]
    return plan(conv, torch.empty(1, *size), support=support).layers[0]


def _shares(layer: LayerPlan, cell: tuple[int, int]) -> Tensor:
    """From the pattern itself, one cell at a time."""
    pattern = layer.pattern
    grid = torch.zeros(
        math.ceil(layer.shape[0] / layer.block_shape[0]), math.ceil(layer.shape[1] / layer.block_shape[1])
    )
    for row in range(grid.shape[0]):
        grid[row, pattern.col_indices[pattern.crow_indices[row] : pattern.crow_indices[row + 1]].long()] = 1
    rows = [[part.mean() for part in strip.split(cell[1], 1)] for strip in grid.split(cell[0])]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("support", [Local(), Dilated(1), Full()], ids=str)
@pytest.mark.parametrize("pixels", [1, 5, 256])
@pytest.mark.parametrize("name", CONVS)
def test_shares_are_those_of_the_pattern(name: str, pixels: int, support: Support) -> None:
    layer = _layer(name, support)
    density = density_map(layer, pixels)
    assert max(density.share.shape) <= pixels
    assert not density.sampled
    torch.testing.assert_close(density.share, _shares(layer, density.cell), rtol=1e-6, atol=0)


def test_grown_blocks_are_spread() -> None:
    layer = _layer("plain", Grown(1.5))
    density = density_map(layer)
    local = density_map(_layer("plain", Local()))
    assert bool((density.share >= local.share).all())
    assert float(density.share.min()) > 0
    exact = _shares(layer, density.cell)
    assert float(density.share.mean()) == pytest.approx(float(exact.mean()), rel=1e-6)


def test_a_sample_of_rows_is_about_right() -> None:
    with torch.device("meta"):
        layer = plan(resnet18(), torch.empty(1, 3, 112, 112), support=Dilated(3)).layers[1]
    whole, some = density_map(layer, 32), density_map(layer, 32, most_blocks=layer.stored_blocks // 8)
    assert (whole.sampled, some.sampled) == (False, True)
    assert float((whole.share - some.share).abs().max()) < 0.25
    assert float(some.share.mean()) == pytest.approx(float(whole.share.mean()), rel=0.1)


def test_a_hundred_million_blocks_without_a_pattern() -> None:
    with torch.device("meta"):
        layer = plan(resnet18(), torch.empty(1, 3, 224, 224), support=Full()).layers[0]
    assert layer.stored_blocks > 10**7
    density = density_map(layer)
    assert bool((density.share == 1).all())
    assert "pattern" not in vars(layer)


@pytest.mark.parametrize("name", ["pixels", "most_blocks"])
def test_bad_input(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        density_map(_layer("plain", Local()), **{name: 0})
