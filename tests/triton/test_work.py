"""The work model counts what a schedule multiplies and moves."""

from __future__ import annotations

import pytest
import torch

from efcn_sparse import BlockPattern
from efcn_sparse.ops.backends.triton.schedule import super_rows
from efcn_sparse.ops.backends.triton.tuning import Config
from efcn_sparse.ops.backends.triton.work import H200, Shape, best_members, candidates, sddmm_work, spmm_work
from efcn_sparse.pattern import Structure


def test_a_dense_matrix_in_full_tiles_wastes_nothing() -> None:
    shape = Shape(64, 64, 16, 256, 256, 256, 16)
    config = Config(128, 64, 64, members=1)
    for work in (spmm_work(shape, 16, config), sddmm_work(shape, 16, Config(128, 64, 64, members=1))):
        assert work.flops == work.useful_flops == 2 * 256**3
        assert work.memory_bytes == 3 * 2 * 256**2
        assert work.l2_bytes > work.memory_bytes


def test_l2_bytes_of_spmm_are_those_of_its_tiles() -> None:
    work = spmm_work(Shape(64, 64, 10, 256, 640, 640, 16), 10, Config(128, 64, 64, members=1))
    x_tiles, values, y = 2 * 10 * 128 * 64, 2 * 10 * 64 * 64, 256 * 640
    assert work.l2_bytes == 2 * (x_tiles + values + y)


def _entries(p: BlockPattern, sizes: list[int]) -> dict[int, int]:
    return {size: super_rows(Structure.of(p.structure), False, size).cols.numel() for size in sizes}


def test_rows_that_share_columns_are_joined_and_others_are_not() -> None:
    config, shape = Config(128, 128, 32), Shape(32, 32, 640, 8192, 2048, 2048, 16)
    sizes = candidates(32, 128)
    assert sizes == [1, 2, 4]
    band = torch.zeros(64, 64, dtype=torch.bool)
    for row in range(64):
        band[row, row // 4 * 4 : row // 4 * 4 + 10] = True
    shared = BlockPattern.from_mask(band, (32, 32), shape=(2048, 2048))
    assert best_members("spmm", shape, _entries(shared, sizes), config) == 4
    diagonal = BlockPattern.from_mask(torch.eye(64, dtype=torch.bool), (32, 32), shape=(2048, 2048))
    alone = Shape(32, 32, 64, 8192, 2048, 2048, 16)
    assert best_members("spmm", alone, _entries(diagonal, sizes), config) == 1


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_the_bound_is_the_largest_term(bits: int) -> None:
    work = spmm_work(Shape(64, 64, 10, 256, 640, 640, bits), 10, Config(128, 64, 64, members=1))
    times = {
        "MMA": work.flops / H200.flops[bits],
        "L2": work.l2_bytes / H200.l2,
        "memory": work.memory_bytes / H200.memory,
    }
    assert work.seconds(H200, bits) == times[work.bound(H200, bits)] == max(times.values())
