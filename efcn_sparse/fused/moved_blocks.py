"""What an optimizer keeps for the slices of a layer's values, cut anew for blocks that have moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def moved_parameters(parts: Sequence[Tensor], source: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The blocks of ``parts`` in the order of ``source``, zero where that is -1, in pieces of ``sizes`` blocks."""
    return _moved([part.detach() for part in parts], source, sizes)


def moved_states(states: Sequence[Mapping[str, Any]], source: Tensor, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The states of new slices from those of the old ones.

    Tensors with one number for each value move with their blocks; scalars, which count steps, are the same for all
    slices, and each new one gets its own copy.

    Raises:
        ValueError: a state is of another shape, or scalars differ from slice to slice.
    """
    moved: list[dict[str, Any]] = [{} for _ in sizes]
    for key in states[0]:
        entries = [state[key] for state in states]
        if isinstance(entries[0], Tensor) and entries[0].dim() == 3:
            for state, part in zip(moved, _moved(entries, source, sizes), strict=True):
                state[key] = part
        elif isinstance(entries[0], Tensor) and entries[0].dim() > 0:
            raise ValueError(
                f"optimizer must keep scalars or tensors like values, got {key!r} {list(entries[0].shape)}"
            )
        elif any(bool(entry != entries[0]) for entry in entries):
            raise ValueError(f"optimizer must have one {key!r} for all slices of a layer, got several")
        else:
            for state in moved:
                state[key] = entries[0].clone() if isinstance(entries[0], Tensor) else entries[0]
    return moved


def _moved(parts: Sequence[Tensor], source: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    joined = torch.cat([*parts]).index_select(0, source.clamp(min=0))
    joined.index_fill_(0, (source < 0).nonzero().squeeze(1), 0)
    return list(joined.split(list(sizes)))
