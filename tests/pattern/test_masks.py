"""``to_mask`` is the support, and ``from_mask`` finds a pattern with just that support."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efcn_sparse import BlockPattern
from tests import oracle
from tests.table import PATTERNS, pattern


@pytest.mark.parametrize("name", PATTERNS)
def test_to_mask_is_the_support(name: str) -> None:
    p = pattern(name)
    assert p.to_mask().dtype == torch.bool
    assert torch.equal(p.to_mask(), oracle.dense(torch.ones(p.values_shape), p).bool())


@pytest.mark.parametrize("name", PATTERNS)
def test_the_support_survives_the_round_trip(name: str) -> None:
    p = pattern(name)
    again = BlockPattern.from_mask(p.to_mask(), p.block_shape)
    assert torch.equal(again.to_mask(), p.to_mask())
    assert again == p  # the table holds no block without an entry, and each mask once


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    block_shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.95, 1.0]),
    seed=st.integers(0, 999),
)
def test_any_mask(shape: tuple[int, int], block_shape: tuple[int, int], density: float, seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    p = BlockPattern.from_mask(mask, block_shape)
    assert torch.equal(p.to_mask(), mask)
    assert p.nnz == int(mask.sum())
    assert p.transposed().transposed() == p
    assert torch.equal(p.transposed().to_mask(), mask.T)
    tiles = torch.zeros(p.grid[0] * block_shape[0], p.grid[1] * block_shape[1], dtype=torch.bool)
    tiles[: shape[0], : shape[1]] = mask
    tiles = tiles.view(p.grid[0], block_shape[0], p.grid[1], block_shape[1])
    assert p.nnz_blocks == int(tiles.any(3).any(1).sum())


def test_whole_blocks_have_no_mask() -> None:
    p = BlockPattern.from_mask(torch.ones(10, 10, dtype=torch.bool), (4, 4))
    assert p.masks.shape == (0, 4, 4)
    assert p.mask_index.numel() == 0


def test_equal_masks_are_stored_once() -> None:
    p = BlockPattern.from_mask(torch.eye(64, dtype=torch.bool), (8, 8))
    assert p.masks.shape == (1, 8, 8)
    assert p.mask_index.tolist() == [0] * 8


def test_a_mask_with_strides() -> None:
    mask = torch.rand(20, 30) < 0.3
    assert BlockPattern.from_mask(mask.T, (4, 3)) == BlockPattern.from_mask(mask.T.contiguous(), (4, 3))
    assert BlockPattern.from_mask(mask.T, (4, 3)).transposed() == BlockPattern.from_mask(mask, (3, 4))
