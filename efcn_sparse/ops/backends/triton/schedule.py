"""The order of the work: which block rows are computed together, over which columns, in which pieces.

Worked out once for each pattern and walk, on its device and without Python loops; the kernels only follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from efcn_sparse.pattern import Structure

T = TypeVar("T")
_REMEMBERED: dict[Hashable, tuple[tuple[StorageWeakRef, ...], dict[Hashable, Any]]] = {}


@dataclass(frozen=True)
class SuperRows:
    """Block rows in groups of neighbors, each over the union of the columns that its members need.

    Attributes:
        members: int32 ``[groups, size]``: the block rows of each group, -1 past the last one.
        starts: int64 ``[groups + 1]``: where the entries of each group lie.
        cols: int32 ``[entries]``: the block column of an entry, ascending within a group.
        blocks: int32 ``[entries, size]``: each member's block of that column in ``values``, -1 where it has none.
    """

    members: Tensor
    starts: Tensor
    cols: Tensor
    blocks: Tensor

    @property
    def size(self) -> int:
        """Block rows in a group."""
        return self.members.shape[1]


@dataclass(frozen=True)
class SpmmTasks:
    """Tasks of SpMM, longest first.

    Attributes:
        tasks: int32 ``[n, 4]``: group, first entry, entries, and the slot for the piece (-1: the group is whole).
        sums: int32 ``[split groups, 3]``: group, first slot, slots.
        slots: how many pieces there are.
    """

    tasks: Tensor
    sums: Tensor
    slots: int


def super_rows(structure: Structure, transpose: bool, size: int) -> SuperRows:
    """Groups of ``size`` consecutive block rows of a walk (block columns, with ``transpose``)."""
    starts, cols, blocks = structure.walk(transpose)
    n_cols = structure.walk(not transpose).starts.numel() - 1
    n_rows = starts.numel() - 1
    rows = torch.arange(n_rows, dtype=torch.int32, device=starts.device)
    groups = -(-n_rows // size)
    members = torch.nn.functional.pad(rows, (0, groups * size - n_rows), value=-1).view(groups, size)
    if size == 1:
        return SuperRows(members, starts.to(torch.int64), cols, blocks[:, None].contiguous())
    row = torch.repeat_interleave(rows, starts.diff(), output_size=cols.numel()).to(torch.int64)
    entries, which = torch.unique((row // size) * n_cols + cols, return_inverse=True)
    by_member = blocks.new_full((entries.numel(), size), -1)
    by_member[which, row % size] = blocks
    ends = torch.bincount(entries // max(1, n_cols), minlength=groups).cumsum(0)
    return SuperRows(members, torch.nn.functional.pad(ends, (1, 0)), (entries % max(1, n_cols)).int(), by_member)


def spmm_tasks(rows: SuperRows, most: int) -> SpmmTasks:
    """One task for each group, or several of about equal length where it has more than ``most`` entries (0: never)."""
    lengths = rows.starts.diff()
    pieces = torch.ones_like(lengths) if most == 0 else ((lengths + most - 1) // most).clamp(min=1)
    group = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), pieces)
    rank = torch.arange(group.numel(), device=group.device) - (pieces.cumsum(0) - pieces)[group]
    begin, end = rank * lengths[group] // pieces[group], (rank + 1) * lengths[group] // pieces[group]
    split = pieces > 1
    slots = torch.where(split, pieces, 0)
    first_slot = slots.cumsum(0) - slots
    slot = torch.where(split[group], first_slot[group] + rank, -1)
    tasks = torch.stack([group, rows.starts[group] + begin, end - begin, slot], 1)
    tasks = tasks[torch.argsort(end - begin, descending=True, stable=True)]
    split_groups = split.nonzero().squeeze(1)
    sums = torch.stack([split_groups, first_slot[split_groups], pieces[split_groups]], 1)
    return SpmmTasks(tasks.int().contiguous(), sums.int().contiguous(), int(slots.sum()))


def sddmm_tasks(rows: SuperRows, width: int, tile: int) -> Tensor:
    """int32 ``[n, 4]``: group, its first entry, its entries, and which ``tile`` of their columns, laid side by side."""
    lengths = rows.starts.diff()
    tiles = (lengths * width + tile - 1) // tile
    group = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), tiles)
    rank = torch.arange(group.numel(), device=group.device) - (tiles.cumsum(0) - tiles)[group]
    return torch.stack([group, rows.starts[group], lengths[group], rank], 1).int().contiguous()


def remembered(structure: Structure, key: Hashable, make: Callable[[], T]) -> T:
    """``make()`` of the first call with this key for this pattern.

    A pattern is known by the memory of its two index starts, whatever tensor objects autograd or the compiler hand on.
    The weak references keep that memory's name from being given away, so a name that is known is still the pattern's.

    Raises:
        RuntimeError: a CUDA graph is being captured, and there was no call before it.
    """
    storages = structure.crow_indices.untyped_storage(), structure.ccol_indices.untyped_storage()
    name = storages[0]._cdata, storages[1]._cdata
    found = _REMEMBERED.get(name)
    if found is None:
        _forget_the_dead()
        found = _REMEMBERED[name] = tuple(StorageWeakRef(storage) for storage in storages), {}
    known = found[1]
    if key not in known:
        if structure.crow_indices.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a pattern's schedule is worked out at the first call, which cannot be inside a CUDA graph's capture: "
                "run the step once before it"
            )
        known[key] = make()
    return known[key]


def _forget_the_dead() -> None:
    for name in [name for name, (references, _) in _REMEMBERED.items() if any(ref.expired() for ref in references)]:
        del _REMEMBERED[name]
