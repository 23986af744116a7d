"""Schedules: each block once, each entry in one task, longest first; and worked out once for each pattern."""

from __future__ import annotations

import gc

import pytest
import torch

from efcn_sparse import BlockPattern
from efcn_sparse.ops.backends.triton import schedule
from efcn_sparse.ops.backends.triton.schedule import remembered, sddmm_tasks, spmm_tasks, super_rows
from efcn_sparse.pattern import Structure
from tests.table import PATTERNS, pattern


def _walk(p: BlockPattern, transpose: bool) -> list[tuple[int, int, int]]:
    """(row, column, block) of each block of a walk."""
    found = []
    for block, (row, col) in enumerate(zip(p.rows_of_blocks().tolist(), p.col_indices.tolist(), strict=True)):
        found.append((col, row, block) if transpose else (row, col, block))
    return sorted(found)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("transpose", [False, True])
def test_super_rows_hold_each_block_once(name: str, size: int, transpose: bool) -> None:
    p = pattern(name)
    rows = super_rows(p.structure, transpose, size)
    found, starts = [], rows.starts.tolist()
    for group, members in enumerate(rows.members.tolist()):
        cols = rows.cols[starts[group] : starts[group + 1]].tolist()
        assert cols == sorted(set(cols))
        for col, blocks in zip(cols, rows.blocks[starts[group] : starts[group + 1]].tolist(), strict=True):
            assert any(block >= 0 for block in blocks)
            found += [(row, col, block) for row, block in zip(members, blocks, strict=True) if block >= 0]
    assert sorted(found) == _walk(p, transpose)
    assert [row for row in rows.members.flatten().tolist() if row >= 0] == list(range(p.grid[int(transpose)]))


@pytest.mark.parametrize("name", ["unbalanced", "banded", "long-rows", "empty", "empty-rows-and-columns", "ragged"])
@pytest.mark.parametrize("most", [0, 1, 3, 8])
def test_tasks_cover_each_entry_once(name: str, most: int) -> None:
    rows = super_rows(pattern(name).structure, False, 2)
    todo = spmm_tasks(rows, most)
    covered, slots, groups = [], {}, []
    lengths = todo.tasks[:, 2].tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert most == 0 or all(length <= most for length in lengths)
    for group, first, length, slot in todo.tasks.tolist():
        assert int(rows.starts[group]) <= first <= first + length <= int(rows.starts[group + 1])
        covered += range(first, first + length)
        groups.append(group)
        if slot >= 0:
            slots[slot] = (group, first)
    assert sorted(covered) == list(range(rows.cols.numel()))
    assert set(groups) == set(range(rows.members.shape[0]))
    assert sorted(slots) == list(range(todo.slots))
    for group, first_slot, count in todo.sums.tolist():
        assert count > 1
        pieces = [slots[slot] for slot in range(first_slot, first_slot + count)]
        assert pieces == sorted(pieces)
        assert {of for of, _ in pieces} == {group}
    assert todo.slots == sum(count for _, _, count in todo.sums.tolist())


@pytest.mark.parametrize("name", ["unbalanced", "odd-blocks", "empty", "wide-blocks"])
def test_tiles_cover_each_column_once(name: str) -> None:
    p = pattern(name)
    rows, width, tile = super_rows(p.structure, False, 2), p.block_shape[1], 16
    tiles: dict[int, list[int]] = {}
    for group, first, entries, at in sddmm_tasks(rows, width, tile).tolist():
        assert (first, entries) == (int(rows.starts[group]), int(rows.starts[group + 1] - rows.starts[group]))
        tiles.setdefault(group, []).append(at)
    for group, length in enumerate(rows.starts.diff().tolist()):
        assert tiles.get(group, []) == list(range(-(-length * width // tile)))


def test_a_pattern_is_known_by_its_memory_and_not_by_its_tensors() -> None:
    p, made = BlockPattern.dense((8, 8), (4, 4)), []
    for tensors in (p.structure, [tensor.view(tensor.shape) for tensor in p.structure]):
        remembered(Structure(*tensors), "key", lambda: made.append(1))
    assert made == [1]
    remembered(p.structure, "another key", lambda: made.append(2))
    remembered(p.transposed().structure, "key", lambda: made.append(3))
    remembered(BlockPattern.dense((8, 8), (4, 4)).structure, "key", lambda: made.append(4))
    assert made == [1, 2, 3, 4]


def test_what_is_remembered_ends_with_the_pattern() -> None:
    before = len(schedule._REMEMBERED)
    for _ in range(20):
        p = BlockPattern.dense((8, 8), (4, 4))
        remembered(p.structure, "key", lambda: torch.zeros(1))
        del p
    gc.collect()
    assert len(schedule._REMEMBERED) <= before + 1


def test_a_capture_cannot_work_out_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnTheGpu(torch.Tensor):
        is_cuda = True

    structure = BlockPattern.dense((8, 8), (4, 4)).structure
    captured = structure._replace(crow_indices=structure.crow_indices.as_subclass(OnTheGpu))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run the step once before it"):
        remembered(captured, "key", lambda: 1)
