"""Which program reads which copies of which elements, worked out once for each plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from efcn_sparse.subspace.plan import PURELY_OFF_LOCAL, SubspacePlan

FINAL, NOT_KEPT = -1, -2  # instead of a slot
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
    slot = torch.where(split[pair], first_slot[pair] + rank, FINAL)
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
