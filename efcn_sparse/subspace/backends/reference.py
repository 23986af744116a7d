"""Plain torch, on any device, class by class: never more than a few million values at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from efcn_sparse.embedding.ties import OFF_LOCAL
from efcn_sparse.ops.backends.reference import NAME as NAME
from efcn_sparse.ops.backends.reference import why_not as why_not
from efcn_sparse.subspace.plan import SubspacePlan

_CHUNK_ELEMENTS = 1 << 22


def squares(values: Tensor, plan: SubspacePlan) -> Tensor:
    """float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖²."""
    first, total, square, count = _sums_over_copies(values, plan)
    means, untied, counts = _entries(first, total, square, count, plan)
    off_local = square[plan.maps.flatten() == OFF_LOCAL].sum()
    return torch.stack([(counts * means.square()).sum(), untied.sum(), off_local])


def project(values: Tensor, plan: SubspacePlan, tie: bool) -> None:
    """Off-local elements ← 0; with ``tie``, local elements ← mean of their copies."""
    projected = values.new_zeros(plan.maps.shape)
    if tie:
        starts, places = plan.entries
        means = _entries(*_sums_over_copies(values, plan), plan)[0]
        projected.view(-1)[places] = torch.repeat_interleave(means, starts.diff()).to(values.dtype)
    for k, blocks in _chunks(plan):
        off_local = plan.maps[k] < 0
        if tie:
            values[blocks] = projected[k]
        elif bool(off_local.any()):
            values[blocks] = values[blocks].masked_fill(off_local, 0)


def _chunks(plan: SubspacePlan) -> Iterator[tuple[int, Tensor]]:
    """Each class with its blocks, a bounded number at a time."""
    size = max(1, _CHUNK_ELEMENTS // max(1, plan.maps[:1].numel()))
    starts = plan.class_starts.tolist()
    for k, (begin, end) in enumerate(itertools.pairwise(starts)):
        for at in range(begin, end, size):
            yield k, plan.blocks_by_class[at : min(at + size, end)].to(torch.int64)


def _sums_over_copies(values: Tensor, plan: SubspacePlan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each element of ``maps``: the first copy, sums of differences to it and of their squares, and how many."""
    maps, tile = plan.maps.flatten(1), plan.maps[:1].numel()
    first, total, square = values.new_zeros((3, maps.shape[0], tile), dtype=torch.float64)
    seen = -1
    for k, blocks in _chunks(plan):
        copies = values[blocks].view(-1, tile).to(torch.float64)
        if k != seen:  # off-local elements are measured from zero
            first[k], seen = torch.where(maps[k] >= 0, copies[0], 0.0), k
        difference = copies - first[k]
        total[k] += difference.sum(0)
        square[k] += difference.square().sum(0)
    count = plan.class_starts.diff().to(torch.float64)[:, None].expand_as(first)
    return first.flatten(), total.flatten(), square.flatten(), count.flatten()


def _entries(
    first: Tensor, total: Tensor, square: Tensor, count: Tensor, plan: SubspacePlan
) -> tuple[Tensor, Tensor, Tensor]:
    """``(mean, untied², count)`` of every kernel entry from the sums at its places (Chan, Golub and LeVeque 1979)."""
    starts, places = plan.entries
    here = places[starts[:-1]]
    reference, shift = first[here], total[here] / count[here]
    counts, within, distance, distance_squared = first.new_zeros((4, here.numel()))
    per_entry = starts.diff()
    for rank in range(int(per_entry.max()) if per_entry.numel() else 0):  # one place of every entry: no collisions
        entry = (per_entry > rank).nonzero().squeeze(1)
        at = places[starts[entry] + rank]
        mean = total[at] / count[at]
        away = (first[at] - reference[entry]) + (mean - shift[entry])
        counts[entry] += count[at]
        within[entry] += square[at] - total[at] * mean
        distance[entry] += count[at] * away
        distance_squared[entry] += count[at] * away.square()
    away = distance / counts
    untied = within.clamp(min=0) + (distance_squared - distance * away).clamp(min=0)
    return reference + (shift + away), untied, counts
