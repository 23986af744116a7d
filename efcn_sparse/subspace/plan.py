"""How the stored blocks of an embedded convolution are read, worked out once for each layer."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from efcn_sparse.embedding import OFF_LOCAL, OUTSIDE, EmbeddedConv, Ties

TIED, PURELY_OFF_LOCAL, MIXED = 0, 1, 2
_SLICE_ELEMENTS = 512  # as kSlice in csrc/cpu/subspace_plan.h
_OFF_LOCAL_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class SubspacePlan:
    """The classes of a :class:`Ties`, sorted by how they are read, and the tasks that read them.

    Attributes:
        maps, class_starts, blocks_by_class: as in :class:`Ties`.
        kinds: int32 ``[n_classes]``. ``TIED``: each element copies a kernel entry that no other place copies, so the
            class's own sums are final. ``PURELY_OFF_LOCAL``: no element copies one. ``MIXED``: the rest.
        offsets: int64 ``[n_classes + 1]``: where each class's elements lie in the workspace of mixed classes.
        units: int32 ``[n_units, 3]``: tasks (class, begin, end), largest first. A task takes the elements
            ``[begin, end)`` of all blocks of a tied or mixed class, or the blocks ``[begin, end)`` of an off-local one.
        group_starts, group_positions: int64: the places in the workspace that copy one kernel entry, entry by entry.
    """

    maps: Tensor
    class_starts: Tensor
    blocks_by_class: Tensor
    kinds: Tensor
    offsets: Tensor
    units: Tensor
    group_starts: Tensor
    group_positions: Tensor

    @functools.cached_property
    def tensors(self) -> list[Tensor]:
        """The plan as the compiled operators take it."""
        return [
            self.maps, self.class_starts, self.blocks_by_class, self.kinds,
            self.offsets, self.units, self.group_starts, self.group_positions,
        ]  # fmt: skip

    @functools.cached_property
    def entries(self) -> tuple[Tensor, Tensor]:
        """``(starts, places)`` of every copied kernel entry in ``maps.flatten()``, whatever the class."""
        return _places_by_entry(self.maps.flatten())


_PLANS = WeakIdKeyDictionary()


def plan_of(ties: Ties) -> SubspacePlan:
    """The plan for ``ties``, made at the first call."""
    plan = _PLANS.get(ties)
    if plan is None:
        plan = _PLANS[ties] = make_plan(ties.maps, ties.class_starts, ties.blocks_by_class)
    return plan


@functools.lru_cache(maxsize=256)
def plan_of_bias(positions: int, channels: int, device: torch.device) -> SubspacePlan:
    """The plan for an untied bias, read as ``positions`` blocks ``[1, channels]`` of one class."""
    return make_plan(
        torch.arange(channels, dtype=torch.int32, device=device).view(1, 1, channels),
        torch.tensor([0, positions], dtype=torch.int32, device=device),
        torch.arange(positions, dtype=torch.int32, device=device),
    )


def weight_blocks(layer: EmbeddedConv) -> tuple[Tensor, SubspacePlan]:
    """The stored blocks, and the plan to read them."""
    return layer.linear.values.detach(), plan_of(layer.ties)


def bias_blocks(layer: EmbeddedConv) -> tuple[Tensor, SubspacePlan] | None:
    """The bias as blocks ``[positions, 1, channels]`` that all copy the convolution's bias; None without one."""
    if layer.linear.bias is None:
        return None
    channels = layer.geometry.out_channels
    blocks = layer.linear.bias.detach().view(-1, 1, channels)
    return blocks, plan_of_bias(blocks.shape[0], channels, blocks.device)


def make_plan(maps: Tensor, class_starts: Tensor, blocks_by_class: Tensor) -> SubspacePlan:
    """The plan for blocks sorted by class; the arguments are those of :class:`Ties`."""
    _check(maps, class_starts, blocks_by_class)
    sizes = class_starts.diff().to(torch.int64)
    maps = maps.masked_fill((sizes == 0)[:, None, None], OUTSIDE)
    used = maps.flatten(1)
    copied = used >= 0
    places = torch.bincount(used[copied], minlength=1)
    alone = places[used.clamp(min=0, max=places.numel() - 1).to(torch.int64)] == 1
    kinds = torch.full_like(sizes, MIXED, dtype=torch.int32)
    kinds[(used == OFF_LOCAL).all(1)] = PURELY_OFF_LOCAL
    kinds[(copied & alone).all(1)] = TIED
    mixed = kinds == MIXED
    offsets = torch.nn.functional.pad((mixed * used.shape[1]).cumsum(0), (1, 0))
    group_starts, group_positions = _places_by_entry(used[mixed].flatten())
    return SubspacePlan(
        maps.contiguous(), class_starts.contiguous(), blocks_by_class.contiguous(), kinds, offsets,
        _units(kinds, sizes, used.shape[1]), group_starts, group_positions,
    )  # fmt: skip


def _places_by_entry(used: Tensor) -> tuple[Tensor, Tensor]:
    """``(starts, places)``: where each kernel entry that occurs in ``used`` does so, in ascending order."""
    copied = (used >= 0).nonzero().squeeze(1)
    entries, order = torch.sort(used[copied], stable=True)
    counts = torch.unique_consecutive(entries, return_counts=True)[1]
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)), copied[order]


def _units(kinds: Tensor, sizes: Tensor, tile: int) -> Tensor:
    """The tasks, largest first; their number depends on the layer alone, so that results do not depend on threads."""
    off_local = kinds == PURELY_OFF_LOCAL
    length = torch.where(off_local, sizes, tile)
    step = torch.where(off_local, max(1, _OFF_LOCAL_ELEMENTS // max(1, tile)), _SLICE_ELEMENTS)
    tasks = torch.where(sizes > 0, (length + step - 1) // step, 0)
    which = torch.repeat_interleave(torch.arange(kinds.numel(), device=kinds.device), tasks)
    rank = torch.arange(which.numel(), device=kinds.device) - (tasks.cumsum(0) - tasks)[which]
    begin = rank * step[which]
    end = torch.minimum(begin + step[which], length[which])
    elements = (end - begin) * torch.where(off_local, tile, sizes)[which]
    units = torch.stack([which, begin, end], 1)[torch.argsort(elements, descending=True, stable=True)]
    return units.to(torch.int32).contiguous()


def _check(maps: Tensor, class_starts: Tensor, blocks_by_class: Tensor) -> None:
    """The compiled kernels trust these arrays, so a plan is made of sound ones only."""
    arrays = {"maps": maps, "class_starts": class_starts, "blocks_by_class": blocks_by_class}
    for name, tensor in arrays.items():
        dims = 3 if name == "maps" else 1
        if tensor.dtype != torch.int32 or tensor.dim() != dims:
            raise ValueError(f"{name} must be int32 with {dims} dimensions, got {tensor.dtype} {list(tensor.shape)}")
    classes, blocks = maps.shape[0], blocks_by_class.numel()
    if class_starts.numel() != classes + 1:
        raise ValueError(f"class_starts must be [{classes + 1}], got [{class_starts.numel()}]")
    if int(class_starts[0]) != 0 or int(class_starts[-1]) != blocks or bool((class_starts.diff() < 0).any()):
        raise ValueError(f"class_starts must rise from 0 to the {blocks} blocks, got {class_starts.tolist()}")
    if blocks and (torch.bincount(blocks_by_class.clamp(min=0), minlength=blocks) != 1).any():
        raise ValueError(f"blocks_by_class must hold each of the {blocks} blocks once")
    if maps.numel() and int(maps.min()) < OUTSIDE:
        raise ValueError(f"maps must be kernel entries, {OFF_LOCAL} or {OUTSIDE}, got {int(maps.min())}")
