"""Blocks multiplied as panels, narrow and wide: every size of a tile, ragged ends, masks, long chains, guard bands."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.ops import laws
from tests.ops.inputs import randn, random_values, within
from tests.oracle import assert_accurate
from tests.table import FLOAT32, FLOAT64, Row, rows

CPU = rows(FLOAT32, FLOAT64, where=lambda backend: backend.name == "cpu")
LONGS = (32, 48, 64, 80, 112, 256)


def _band(long: int, short: int, seed: int) -> BlockPattern:
    """Blocks near the diagonal; some block rows and columns are empty, the last end early, and one block has a mask."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.zeros(16, 20, dtype=torch.bool)
    for col in range(20):
        first = col * 14 // 20
        blocks[first : first + 3, col] = torch.rand(3, generator=generator) < 0.8
    blocks[4], blocks[:, 9] = False, False
    blocks[-1, -1] = blocks[0, 0] = True
    mask = blocks.repeat_interleave(long, 0).repeat_interleave(short, 1)
    mask[:long, :short] &= torch.rand(long, short, generator=generator) < 0.5
    return BlockPattern.from_mask(mask[: len(mask) - long // 3, : mask.shape[1] - short // 2], (long, short))


def _check(row: Row, pattern: BlockPattern, batch: int) -> None:
    for transpose in (False, True):
        laws.spmm_is_dense(row, pattern, batch=batch, transpose=transpose, bias=not transpose)
    laws.sddmm_is_dense(row, pattern, batch=batch)


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("short", range(1, 17))
def test_the_product_of_every_width(row: Row, short: int) -> None:
    for k in range(2):
        long = LONGS[(short + 3 * k) % len(LONGS)]
        _check(row, _band(long, short, short), batch=64 + short)
        _check(row, _band(long, short, short).transposed(), batch=257 + short)


@pytest.mark.parametrize("row", CPU)
def test_the_product_of_whole_blocks(row: Row) -> None:
    """Nothing is ragged or empty, so that results are written without scratch memory; chains are summed in parts."""
    _check(row, BlockPattern.dense((64, 600), (64, 6)), batch=70)
    cols = torch.arange(8).repeat_interleave(70)
    at = 31 * cols + torch.arange(70).repeat(8)
    _check(row, BlockPattern.from_blocks(at, cols, (64 * 290, 48), (64, 6)), batch=65)
    _check(row, BlockPattern.dense((192, 24), (48, 4)), batch=700)


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("sides", [(16, 16), (32, 20), (48, 64), (80, 33), (112, 96), (128, 128)])
def test_the_product_of_wide_blocks(row: Row, sides: tuple[int, int]) -> None:
    _check(row, _band(*sides, seed=7), batch=64 + sides[1] % 7)
    _check(row, _band(*sides, seed=8).transposed(), batch=301)
    _check(row, BlockPattern.dense((2 * sides[0], 9 * sides[1]), sides), batch=65)  # chains in parts, and with bias


@pytest.mark.parametrize("row", CPU)
def test_the_product_of_blocks_wider_than_a_chain(row: Row) -> None:
    """One block is more than the kPanelChain of spmm_panels.h, and the kSegmentK of spmm.cpp."""
    sides = (128, 520)
    blocks = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    mask = blocks.repeat_interleave(sides[0], 0).repeat_interleave(sides[1], 1)
    mask[: sides[0], : sides[1]] &= torch.rand(sides, generator=torch.Generator().manual_seed(9)) < 0.5
    p = BlockPattern.from_mask(mask[:344, :1820], sides)  # the last blocks end early
    _check(row, p, batch=66)
    _check(row, p.transposed(), batch=301)
    _check(row, BlockPattern.dense((256, 4680), sides), batch=65)  # chains in parts, and with bias


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("batch", [64, 301])
def test_rows_that_share_cache_sets(row: Row, side: int, batch: int) -> None:
    """Rows a multiple of 1 KiB apart, which are copied apart, by several threads."""
    p = BlockPattern.random((512, 1024), (side, side), 0.4, torch.Generator().manual_seed(side))
    _check(row, p, batch)
    laws.results_ignore_threads(row, p, batch=batch)
    slices = [
        randn(batch, 2048, row=row, seed=end)[:, end - features : end]
        for end, features in zip((600, 1100), p.shape, strict=True)
    ]
    values = random_values(p, row)
    for transpose, x in ((False, slices[1]), (True, slices[0])):
        y = es.spmm(x, values, p, transpose=transpose, backend=row.backend)
        assert_accurate(y, oracle.spmm(x, values, p, transpose=transpose), "y")


@pytest.mark.parametrize("row", CPU)
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_results_accumulate_between_guard_bands(row: Row, beta: float) -> None:
    narrow = _band(64, 6, 1), _band(64, 6, 2).transposed(), BlockPattern.dense((128, 12), (64, 6))
    for p in (*narrow, _band(32, 48, 1), BlockPattern.dense((128, 96), (64, 32))):
        laws.results_accumulate(row, p, batch=70, alpha=-0.5, beta=beta)
        a, b = (within(randn(70, side, row=row, seed=side))[0] for side in p.shape)
        values = within(random_values(p, row))[0]
        for transpose, x, like in ((False, b, a), (True, a, b)):
            old = randn(*like.shape, row=row, seed=4)
            out, buffer = within(old, 77.0)
            es.spmm(x, values, p, transpose=transpose, out=out, beta=beta, backend=row.backend)
            assert_accurate(
                out, oracle.accumulated(oracle.spmm(x, values, p, transpose=transpose), 1.0, beta, old), "y"
            )
            assert int((buffer == 77.0).sum()) == buffer.numel() - out.numel()
        old = random_values(p, row, seed=5, outside=0.0)
        out, buffer = within(old, 77.0)
        es.sddmm(a, b, p, out=out, beta=beta, backend=row.backend)
        assert_accurate(out, oracle.accumulated(oracle.sddmm(a, b, p), 1.0, beta, old), "sddmm")
        assert int((buffer == 77.0).sum()) == buffer.numel() - out.numel()


@pytest.mark.parametrize("row", CPU)
def test_features_that_no_block_meets_do_not_count(row: Row) -> None:
    """What lies beside the last, ragged block is not read."""
    for p in (_band(64, 6, 3), _band(64, 6, 3).transposed(), _band(48, 32, 3)):
        a, b = (torch.full((70, side + 64), float("nan"), dtype=row.dtype)[:, :side] for side in p.shape)
        a.copy_(randn(*a.shape, row=row, seed=1))
        b.copy_(randn(*b.shape, row=row, seed=2))
        values = random_values(p, row)
        for transpose, x in ((False, b), (True, a)):
            y = es.spmm(x, values, p, transpose=transpose, backend=row.backend)
            assert_accurate(y, oracle.spmm(x, values, p, transpose=transpose), "y")
        assert_accurate(es.sddmm(a, b, p, backend=row.backend), oracle.sddmm(a, b, p), "sddmm")
