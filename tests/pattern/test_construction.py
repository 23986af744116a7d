"""Every way to make a pattern gives the same pattern."""

from __future__ import annotations

import pytest
import torch

from efcn_sparse import BlockPattern
from tests.table import EMPTY_SHAPES, PATTERNS, pattern


def _block_mask(p: BlockPattern) -> torch.Tensor:
    mask = torch.zeros(p.grid, dtype=torch.bool)
    for row in range(p.grid[0]):
        mask[row, p.col_indices[p.crow_indices[row] : p.crow_indices[row + 1]].long()] = True
    return mask


@pytest.mark.parametrize("name", PATTERNS)
def test_from_its_own_indices(name: str) -> None:
    p = pattern(name)
    again = BlockPattern.from_bsr(
        p.crow_indices, p.col_indices, p.shape, p.block_shape, mask_index=p.mask_index, masks=p.masks
    )
    assert again == p


@pytest.mark.parametrize("name", PATTERNS)
def test_from_positions_in_any_order_with_repeats(name: str) -> None:
    p = pattern(name)
    bare = BlockPattern.from_bsr(p.crow_indices, p.col_indices, p.shape, p.block_shape)
    rows, cols = p.rows_of_blocks().repeat(2), p.col_indices.repeat(2)
    order = torch.randperm(rows.numel(), generator=torch.Generator().manual_seed(0))
    assert BlockPattern.from_blocks(rows[order], cols[order], p.shape, p.block_shape) == bare


@pytest.mark.parametrize("name", PATTERNS)
def test_from_a_mask_of_blocks(name: str) -> None:
    p = pattern(name)
    bare = BlockPattern.from_bsr(p.crow_indices, p.col_indices, p.shape, p.block_shape)
    assert BlockPattern.from_mask(_block_mask(p), p.block_shape, shape=p.shape) == bare


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64, list])
def test_indices_of_any_integers(kind: object) -> None:
    crow, col = [0, 1, 3], [1, 0, 1]
    given = (crow, col) if kind is list else (torch.tensor(crow, dtype=kind), torch.tensor(col, dtype=kind))  # type: ignore[call-overload]
    p = BlockPattern.from_bsr(*given, (4, 6), (2, 3))
    assert all(index.dtype == torch.int32 for index in (p.crow_indices, p.col_indices, p.ccol_indices, p.row_indices))
    assert p == BlockPattern.from_bsr(torch.tensor(crow), torch.tensor(col), (4, 6), (2, 3))


def test_dense_stores_every_block() -> None:
    p = BlockPattern.dense((10, 7), (4, 3))
    assert (p.grid, p.nnz_blocks, p.density, p.nnz) == ((3, 3), 9, 1.0, 70)
    assert bool(p.to_mask().all())
    assert p == BlockPattern.from_mask(torch.ones(10, 7, dtype=torch.bool), (4, 3))


@pytest.mark.parametrize("density", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_random_stores_the_share_that_was_asked_for(density: float) -> None:
    p = BlockPattern.random((80, 60), (8, 6), density, torch.Generator().manual_seed(3))
    assert p.nnz_blocks == round(100 * density)
    assert p.density == p.nnz_blocks / 100


def test_random_follows_its_generator() -> None:
    def draw(seed: int) -> BlockPattern:
        return BlockPattern.random((64, 64), (4, 4), 0.3, torch.Generator().manual_seed(seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_random_draws_every_block_alike() -> None:
    generator, hits = torch.Generator().manual_seed(0), torch.zeros(4, 4)
    for _ in range(400):
        hits += _block_mask(BlockPattern.random((8, 8), (2, 2), 0.25, generator))
    assert hits.sum() == 400 * 4
    assert float(hits.min()) > 60  # 100 ± 9 expected
    assert float(hits.max()) < 140


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_sides_without_features(shape: tuple[int, int]) -> None:
    for p in (
        BlockPattern.dense(shape, (4, 4)),
        BlockPattern.random(shape, (4, 4), 0.5),
        BlockPattern.from_mask(torch.ones(shape, dtype=torch.bool), (4, 4)),
        BlockPattern.from_blocks(torch.empty(0), torch.empty(0), shape, (4, 4)),
    ):
        assert (p.nnz_blocks, p.nnz, p.density, p.shape) == (0, 0, 0.0, shape)
        assert p.to_mask().shape == shape
        assert p.transposed().shape == shape[::-1]


def test_a_pattern_is_not_called_into_being() -> None:
    with pytest.raises(TypeError) as error:
        BlockPattern((4, 4), (2, 2))
    assert str(error.value) == (
        "BlockPattern is made by from_bsr, from_mask, from_blocks, dense or random, not by calling it"
    )


def test_under_a_meta_default_device() -> None:
    with torch.device("meta"):
        built = (
            BlockPattern.dense((8, 8), (4, 4)),
            BlockPattern.random((8, 8), (4, 4), 1.0),
            BlockPattern.from_bsr([0, 2, 4], [0, 1, 0, 1], (8, 8), (4, 4)),
        )
    assert all(p == BlockPattern.dense((8, 8), (4, 4)) and p.device.type == "cpu" for p in built)


def test_given_arrays_are_copied() -> None:
    crow, col = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    index, masks = torch.zeros(1, dtype=torch.int32), torch.eye(2, dtype=torch.uint8)[None].clone()
    p = BlockPattern.from_bsr(crow, col, (2, 4), (2, 2), mask_index=index, masks=masks)
    for tensor in (crow, col, index, masks):
        tensor.fill_(7)
    assert (p.crow_indices.tolist(), p.col_indices.tolist()) == ([0, 1], [0])
    assert (p.mask_index.tolist(), p.masks.tolist()) == ([0], [[[1, 0], [0, 1]]])


def test_random_on_a_grid_too_large_to_shuffle() -> None:
    def drawn() -> BlockPattern:
        return BlockPattern.random((1 << 24, 1 << 24), (16, 16), 1e-8, torch.Generator().manual_seed(0), cover=False)

    p = drawn()
    assert p.nnz_blocks == round(1e-8 * (1 << 40))
    assert p == drawn()
    for places in (p.rows_of_blocks(), p.col_indices):  # uniform: mean and standard deviation of 11,000 draws
        share = places.double() / (1 << 20)
        assert abs(float(share.mean()) - 1 / 2) < 0.02
        assert abs(float(share.std()) - 12**-0.5) < 0.02


def test_few_of_many_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from efcn_sparse.pattern import sources

    monkeypatch.setattr(sources, "_MOST_SHUFFLED", 0)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(10)
    for _ in range(2000):
        found = sources.draw_blocks(10, 0.5, generator, torch.device("cpu"))
        assert found.unique().numel() == found.numel() == 5
        counts[found] += 1
    assert (counts - 1000).abs().max() < 120  # more than five standard deviations of 22.4
