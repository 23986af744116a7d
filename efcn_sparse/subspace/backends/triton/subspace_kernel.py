"""A pass over the stored blocks, one over what is left of them, and the projection: schedule, launchers, kernels.

No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from efcn_sparse.ops.backends.triton.device import must_widen
from efcn_sparse.ops.backends.triton.launch import launch_named
from efcn_sparse.subspace.plan import PURELY_OFF_LOCAL, SubspacePlan

OFF_LOCAL = tl.constexpr(-1)
OUTSIDE = tl.constexpr(-2)
FINAL, NOT_KEPT = tl.constexpr(-1), -2  # instead of a slot
_LANES, _WIDEST_SLICE = 2048, 1024
_PROGRAMS, _MOST_STEPS, _LEAST_STEPS = 4096, 128, 4


@dataclass(frozen=True)
class Schedule:
    """Tasks of one layer. They depend on the layer alone, so that results do not depend on the device's size.

    Attributes:
        tasks: int32 ``[n, 5]``: class, slice of its elements, its copies ``[begin, end)``, and the slot for the sums:
            ``FINAL`` if no other task reads that slice, ``NOT_KEPT`` if no element of the class copies a kernel entry.
        sums: int32 ``[m, 4]``: class, slice, first slot and slots of what several tasks read.
        slots: how many slots there are.
        width: elements of a slice, a power of two.
        height: copies that a program reads side by side, a power of two.
        entries, places: kernel entries of a program, and their places that it reads side by side, powers of two.
    """

    tasks: Tensor
    sums: Tensor
    slots: int
    width: int
    height: int
    entries: int
    places: int


_SCHEDULES = WeakIdKeyDictionary()


def schedule_of(plan: SubspacePlan) -> Schedule:
    """The schedule for ``plan``, made at the first call.

    Raises:
        RuntimeError: a CUDA graph is being captured, and there was no call before it.
    """
    found: Schedule | None = _SCHEDULES.get(plan)
    if found is None:
        if plan.maps.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "how the stored blocks are read is worked out at the first call, which cannot be inside a CUDA "
                "graph's capture: call once before it"
            )
        found = _SCHEDULES[plan] = make_schedule(plan)
    return found


def make_schedule(plan: SubspacePlan) -> Schedule:
    """The schedule for ``plan``, without Python loops."""
    starts, tile = plan.class_starts.to(torch.int64), plan.maps[:1].numel()
    sizes = starts.diff()
    width = min(_WIDEST_SLICE, _power_of_two(tile))
    height = min(_LANES // width, _power_of_two(int(sizes.max()) if sizes.numel() else 1))
    steps = plan.blocks_by_class.numel() * tile // (_PROGRAMS * height * width)
    each = height * min(max(_power_of_two(steps), _LEAST_STEPS), _MOST_STEPS)
    slices = -(-tile // width) if tile else 0

    pairs = torch.arange(sizes.numel() * slices, device=starts.device)
    which, part = pairs // max(1, slices), pairs % max(1, slices)
    pieces = (sizes[which] + each - 1) // each
    split = (pieces > 1) & (plan.kinds[which] != PURELY_OFF_LOCAL)
    slots = torch.where(split, pieces, 0)
    first_slot = slots.cumsum(0) - slots

    pair = torch.repeat_interleave(pairs, pieces)
    rank = torch.arange(pair.numel(), device=pair.device) - (pieces.cumsum(0) - pieces)[pair]
    begin = starts[which[pair]] + rank * each
    end = torch.minimum(begin + each, starts[which[pair] + 1])
    slot = torch.where(split[pair], first_slot[pair] + rank, FINAL.value)
    slot = torch.where(plan.kinds[which[pair]] == PURELY_OFF_LOCAL, NOT_KEPT, slot)
    tasks = torch.stack([which[pair], part[pair], begin, end, slot], 1)
    several = split.nonzero().squeeze(1)
    sums = torch.stack([which[several], part[several], first_slot[several], pieces[several]], 1)

    entry_starts, entry_places = plan.entries
    places = min(256, _power_of_two(-(-entry_places.numel() // max(1, entry_starts.numel() - 1))))
    return Schedule(
        tasks.int().contiguous(), sums.int().contiguous(), int(slots.sum()), width, height, 256 // places, places
    )


def _power_of_two(number: int) -> int:
    """The least power of two of at least ``number``."""
    return 1 << max(0, number - 1).bit_length()


class _CopySums(NamedTuple):
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


def _read(values: Tensor, plan: SubspacePlan) -> _CopySums:
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
    return _CopySums(totals, squares, off_local)


def _join(values: Tensor, plan: SubspacePlan, todo: Schedule, sums: _CopySums, projected: Tensor | None) -> Tensor:
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


@triton.jit
def _first_copy(values, class_starts, blocks_by_class, which, element, tile, mask):
    """The first copy of elements of classes, in fp64: what all copies are compared with, against cancellation."""
    block = tl.load(blocks_by_class + tl.load(class_starts + which, mask=mask, other=0), mask=mask, other=0)
    return tl.load(values + block.to(tl.int64) * tile + element, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def read_copies_kernel(
    values, maps, class_starts, blocks_by_class, tasks, totals, squares, slot_totals, slot_squares, off_local, tile,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One task: over its copies, each element's sums of differences to the first copy, and of their squares."""
    task = tl.program_id(0).to(tl.int64) * 5
    which = tl.load(tasks + task).to(tl.int64)
    element = tl.load(tasks + task + 1) * WIDTH + tl.arange(0, WIDTH)
    begin, end = tl.load(tasks + task + 2), tl.load(tasks + task + 3)
    slot = tl.load(tasks + task + 4)
    here = element < tile
    used = tl.load(maps + which * tile + element, mask=here, other=OUTSIDE)
    first = _first_copy(values, class_starts, blocks_by_class, which + element * 0, element, tile, used >= 0)

    difference_sum = tl.zeros((HEIGHT, WIDTH), dtype=tl.float64)
    square_sum = tl.zeros((HEIGHT, WIDTH), dtype=tl.float64)
    # values of 16 bits wait in registers, and one stage more does not fit those
    STAGES: tl.constexpr = 4 if values.dtype.element_ty.primitive_bitwidth > 16 else 3
    for at in tl.range(begin, end, HEIGHT, num_stages=STAGES):
        copy = at + tl.arange(0, HEIGHT)
        there = copy < end
        block = tl.load(blocks_by_class + copy, mask=there, other=0).to(tl.int64)
        # elements outside the support are read too, and their sums never used: a mask of theirs would forbid wide loads
        inside = there[:, None] & here[None, :]
        value = tl.load(values + block[:, None] * tile + element[None, :], mask=inside, other=0.0).to(tl.float64)
        difference = tl.where(inside, value - first[None, :], 0.0)
        difference_sum += difference
        square_sum += difference * difference

    total, square = tl.sum(difference_sum, 0), tl.sum(square_sum, 0)
    tl.store(off_local + tl.program_id(0), tl.sum(tl.where(used == OFF_LOCAL, square, 0.0), 0))
    kept = which * tile + element
    tl.store(totals + kept, total, mask=here & (slot + element * 0 == FINAL))
    tl.store(squares + kept, square, mask=here & (slot + element * 0 == FINAL))
    place = slot.to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    tl.store(slot_totals + place, total, mask=place >= 0)
    tl.store(slot_squares + place, square, mask=place >= 0)


@triton.jit
def add_slots_kernel(totals, squares, slot_totals, slot_squares, sums, tile, WIDTH: tl.constexpr):
    """The sums of one slice of a class that several tasks read, added in the order of its copies."""
    row = tl.program_id(0).to(tl.int64) * 4
    which, part = tl.load(sums + row).to(tl.int64), tl.load(sums + row + 1)
    slot, count = tl.load(sums + row + 2).to(tl.int64), tl.load(sums + row + 3)
    place = slot * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), dtype=tl.float64)
    square = tl.zeros((WIDTH,), dtype=tl.float64)
    for _ in range(0, count):
        total += tl.load(slot_totals + place)
        square += tl.load(slot_squares + place)
        place += WIDTH
    element = part * WIDTH + tl.arange(0, WIDTH)
    tl.store(totals + which * tile + element, total, mask=element < tile)
    tl.store(squares + which * tile + element, square, mask=element < tile)


@triton.jit
def join_places_kernel(
    values, class_starts, blocks_by_class, totals, squares, entry_starts, entry_places, parts, projected,
    n_entries, tile, ENTRIES: tl.constexpr, PLACES: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Mean and untied square of some kernel entries from the sums at their places (Chan, Golub and LeVeque 1979).

    Their tied and untied squares go to ``parts``; with WRITE their means go to all their places in ``projected``.
    """
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    known = entry < n_entries
    start = tl.load(entry_starts + entry, mask=known, other=0)
    end = tl.load(entry_starts + entry + 1, mask=known, other=0)
    here = tl.load(entry_places + start, mask=known, other=0)
    reference = _first_copy(values, class_starts, blocks_by_class, here // tile, here % tile, tile, known)
    copies_here = tl.load(class_starts + here // tile + 1, mask=known, other=1)
    copies_here -= tl.load(class_starts + here // tile, mask=known, other=0)
    shift = tl.load(totals + here, mask=known, other=0.0) / copies_here.to(tl.float64)

    counts = tl.zeros((ENTRIES, PLACES), dtype=tl.float64)
    within = tl.zeros((ENTRIES, PLACES), dtype=tl.float64)
    distance = tl.zeros((ENTRIES, PLACES), dtype=tl.float64)
    distance_squared = tl.zeros((ENTRIES, PLACES), dtype=tl.float64)
    longest = tl.max(end - start, 0).to(tl.int32)
    for at in range(0, longest, PLACES):
        which = (start + at)[:, None] + tl.arange(0, PLACES)[None, :]
        there = which < end[:, None]
        place = tl.load(entry_places + which, mask=there, other=0)
        first = _first_copy(values, class_starts, blocks_by_class, place // tile, place % tile, tile, there)
        copies = tl.load(class_starts + place // tile + 1, mask=there, other=1)
        copies -= tl.load(class_starts + place // tile, mask=there, other=0)
        count = copies.to(tl.float64)
        total = tl.load(totals + place, mask=there, other=0.0)
        mean = total / count
        away = (first - reference[:, None]) + (mean - shift[:, None])
        counts += tl.where(there, count, 0.0)
        within += tl.load(squares + place, mask=there, other=0.0) - total * mean
        distance += tl.where(there, count * away, 0.0)
        distance_squared += tl.where(there, count * away * away, 0.0)

    count = tl.where(known, tl.sum(counts, 1), 1.0)
    apart, inner = tl.sum(distance, 1), tl.sum(within, 1)
    outer = tl.sum(distance_squared, 1) - apart * (apart / count)
    mean = reference + (shift + apart / count)
    # comparisons, because a maximum would hide a NaN
    untied = tl.where(inner < 0, 0.0, inner) + tl.where(outer < 0, 0.0, outer)
    tl.store(parts + tl.program_id(0) * 2, tl.sum(tl.where(known, count * mean * mean, 0.0), 0))
    tl.store(parts + tl.program_id(0) * 2 + 1, tl.sum(tl.where(known, untied, 0.0), 0))
    if WRITE:
        if projected.dtype.element_ty != tl.float64:
            mean = mean.to(tl.float32)
        for at in range(0, longest, PLACES):
            which = (start + at)[:, None] + tl.arange(0, PLACES)[None, :]
            there = which < end[:, None]
            place = tl.load(entry_places + which, mask=there, other=0)
            new = tl.broadcast_to(mean[:, None], (ENTRIES, PLACES))
            tl.store(projected + place, new.to(projected.dtype.element_ty), mask=there)


@triton.jit
def project_kernel(
    values, maps, projected, blocks_by_class, tasks, tile,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TIE: tl.constexpr,
):  # fmt: skip
    """One task's copies: what is not local becomes zero; with TIE, what is local becomes the class's projection."""
    task = tl.program_id(0).to(tl.int64) * 5
    which = tl.load(tasks + task).to(tl.int64)
    element = tl.load(tasks + task + 1) * WIDTH + tl.arange(0, WIDTH)
    begin, end = tl.load(tasks + task + 2), tl.load(tasks + task + 3)
    used = tl.load(maps + which * tile + element, mask=element < tile, other=OUTSIDE)
    written = element < tile
    if TIE:
        new = tl.load(projected + which * tile + element, mask=used >= 0, other=0.0)
    else:
        new = tl.zeros((WIDTH,), dtype=values.dtype.element_ty)
        written = written & (used < 0)
    for at in range(begin, end, HEIGHT):
        copy = at + tl.arange(0, HEIGHT)
        there = copy < end
        block = tl.load(blocks_by_class + copy, mask=there, other=0).to(tl.int64)
        place = block[:, None] * tile + element[None, :]
        news = tl.broadcast_to(new[None, :], (HEIGHT, WIDTH))
        tl.store(values + place, news, mask=there[:, None] & written[None, :])
