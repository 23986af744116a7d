"""The reading: a pass over the stored blocks, then one over what is left of them; and the projection, a second pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efcn_sparse.ops.backends.triton.device import must_widen
from efcn_sparse.ops.backends.triton.failure import launch_named
from efcn_sparse.subspace.backends.triton.schedule import Schedule, schedule_of
from efcn_sparse.subspace.backends.triton.subspace_kernel import (
    add_slots_kernel,
    join_places_kernel,
    project_kernel,
    read_copies_kernel,
)
from efcn_sparse.subspace.plan import SubspacePlan


class _Sums(NamedTuple):
    """fp64 sums of each element of each class, and of the off-local elements of each task."""

    totals: Tensor
    squares: Tensor
    off_local: Tensor


def squares(values: Tensor, plan: SubspacePlan) -> Tensor:
    """float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖²."""
    sums, todo = _read(values, plan), schedule_of(plan)
    parts = _join(values, plan, todo, sums, None)
    return torch.cat([parts.sum(0), sums.off_local.sum(0, keepdim=True)])


def project(values: Tensor, plan: SubspacePlan, tie: bool) -> None:
    """Off-local elements ← 0; with ``tie``, local elements ← mean of their copies."""
    if must_widen(values.dtype):
        wide = values.float()
        project(wide, plan, tie)
        values.copy_(wide)
        return
    todo = schedule_of(plan)
    projected = values.new_empty(plan.maps.shape if tie else (1,))
    if tie:
        _join(values, plan, todo, _read(values, plan), projected)
    if todo.tasks.shape[0]:
        with launch_named("project_kernel", _cut(todo), values=values, maps=plan.maps):
            project_kernel[(todo.tasks.shape[0],)](
                values, plan.maps, projected, plan.blocks_by_class, todo.tasks, plan.maps[:1].numel(),
                HEIGHT=todo.height, WIDTH=todo.width, TIE=tie,
            )  # fmt: skip


def _read(values: Tensor, plan: SubspacePlan) -> _Sums:
    todo, tile = schedule_of(plan), plan.maps[:1].numel()
    totals, squares = values.new_empty((2, *plan.maps.shape), dtype=torch.float64)
    slots = values.new_empty((2, max(1, todo.slots), todo.width), dtype=torch.float64)
    off_local = values.new_empty((todo.tasks.shape[0],), dtype=torch.float64)
    if todo.tasks.shape[0]:
        with launch_named("read_copies_kernel", _cut(todo), values=values, maps=plan.maps):
            read_copies_kernel[(todo.tasks.shape[0],)](
                values, plan.maps, plan.class_starts, plan.blocks_by_class, todo.tasks,
                totals, squares, slots[0], slots[1], off_local, tile, HEIGHT=todo.height, WIDTH=todo.width,
            )  # fmt: skip
    if todo.slots:
        with launch_named("add_slots_kernel", _cut(todo), slots=slots):
            add_slots_kernel[(todo.sums.shape[0],)](
                totals, squares, slots[0], slots[1], todo.sums, tile, WIDTH=todo.width
            )
    return _Sums(totals, squares, off_local)


def _join(values: Tensor, plan: SubspacePlan, todo: Schedule, sums: _Sums, projected: Tensor | None) -> Tensor:
    """fp64 ``[programs, 2]``: tied and untied squares; means of kernel entries go to ``projected`` if it is there."""
    starts, places = plan.entries
    entries = starts.numel() - 1
    parts = values.new_empty((-(-entries // todo.entries), 2), dtype=torch.float64)
    if entries:
        with launch_named("join_places_kernel", _cut(todo), values=values, totals=sums.totals):
            join_places_kernel[(parts.shape[0],)](
                values, plan.class_starts, plan.blocks_by_class, sums.totals, sums.squares, starts, places, parts,
                parts if projected is None else projected, entries, plan.maps[:1].numel(),
                ENTRIES=todo.entries, PLACES=todo.places, WRITE=projected is not None,
            )  # fmt: skip
    return parts


def _cut(todo: Schedule) -> str:
    return (
        f"{todo.tasks.shape[0]} tasks of {todo.height}×{todo.width} elements, "
        f"{todo.entries}×{todo.places} places of kernel entries"
    )
