"""The order of the work: which block rows are computed together, over which columns, in which pieces.

Worked out once for each pattern and walk, on its device and without Python loops; the kernels only follow it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efcn_sparse.pattern import Structure


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
    if transpose:
        starts, cols, blocks = structure.ccol_indices, structure.row_indices, structure.block_order
        n_cols = structure.crow_indices.numel() - 1
    else:
        starts, cols = structure.crow_indices, structure.col_indices
        blocks = torch.arange(cols.numel(), dtype=torch.int32, device=cols.device)
        n_cols = structure.ccol_indices.numel() - 1
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
