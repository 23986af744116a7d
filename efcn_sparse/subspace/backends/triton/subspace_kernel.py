"""The kernels that read stored blocks class by class, join the copies of a kernel entry, and write the projection.

No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

import triton
import triton.language as tl

OFF_LOCAL = tl.constexpr(-1)
OUTSIDE = tl.constexpr(-2)
FINAL = tl.constexpr(-1)


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
