"""How many blocks each layer keeps: over time, and among layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUDGETS = ("uniform", "erk", "global")


@dataclass(frozen=True)
class CubicSchedule:
    """Densities that fall from 1 at step ``begin`` to their final values at step ``end``, fast at first.

    At step t it is ``final + (1 - final) · (1 - (t - begin) / (end - begin))³``. Where ``end`` is ``begin``, all
    falls at that step.

    Args:
        begin, end: steps of the optimizer, the first of which is 1; before ``begin`` all is dense.
        every: steps from one choice of blocks to the next; the last is at ``end`` in any case.

    Source: Zhu & Gupta, To prune, or not to prune, 2017, arXiv 1710.01878, equation 1, with an initial sparsity of 0.

    Example:
        >>> schedule = CubicSchedule(begin=0, end=100, every=10)
        >>> [round(schedule.density(step, final=0.1), 2) for step in (0, 50, 100)]
        [1.0, 0.21, 0.1]
    """

    begin: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        for name, least in (("begin", 0), ("end", 1), ("every", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.end < self.begin:
            raise ValueError(f"end must be an integer of at least {self.begin}, got {self.end}")

    def due(self, step: int) -> bool:
        """Whether blocks are chosen after this step."""
        return step == self.end or (self.begin < step < self.end and (step - self.begin) % self.every == 0)

    def density(self, step: int, final: float) -> float:
        """The density after ``step`` steps."""
        if step < self.begin:
            return 1.0
        left = 1 - (step - self.begin) / (self.end - self.begin) if step < self.end else 0.0
        return final + (1 - final) * left**3


@dataclass(frozen=True)
class LayerSize:
    """What budgets depend on: the sides of W, its grid, what a block stores, and the final density by its rule."""

    shape: tuple[int, int]
    grid: tuple[int, int]
    area: int
    density: float

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1]


def final_densities(budget: str, sizes: Mapping[str, LayerSize]) -> dict[str, float]:
    """Each layer's density at the end: that of its rule, or for ``"erk"`` the same sum of weights shared by ERK.

    There it is proportional to (in + out) / (in · out), at most 1.

    Source: Evci et al., Rigging the Lottery, ICML 2020; Mocanu et al., 2018.
    """
    if budget != "erk":
        return {name: size.density for name, size in sizes.items()}
    entries = {name: size.shape[0] * size.shape[1] for name, size in sizes.items()}
    raw = {name: sum(size.shape) / entries[name] for name, size in sizes.items()}
    wanted = sum(size.density * entries[name] for name, size in sizes.items())
    full: set[str] = set()
    while True:
        left = wanted - sum(entries[name] for name in full)
        share = left / max(sum(raw[name] * entries[name] for name in raw if name not in full), 1e-300)
        over = {name for name in raw if name not in full and share * raw[name] > 1}
        if not over:
            return {name: 1.0 if name in full else share * raw[name] for name in raw}
        full |= over


def counts_by_layer(
    densities: Mapping[str, float], sizes: Mapping[str, LayerSize], scores: Mapping[str, Tensor] | None, cover: bool
) -> dict[str, int]:
    """How many blocks each layer keeps, at least one.

    Args:
        densities: of each layer; with ``scores`` only the sum of weights that they make counts.
        scores: ``[block rows, block columns]`` by layer, per stored entry, so that layers compare: the highest of all
            stay. With ``cover`` each layer first gets the ``max(grid)`` that its rows and columns need.
    """
    counts = {name: round(densities[name] * size.blocks) for name, size in sizes.items()}
    least = {name: max(size.grid) if cover else 1 for name, size in sizes.items()}
    if scores is None:
        return {name: max(count, least[name]) for name, count in counts.items()}
    wanted = sum(counts[name] * size.area for name, size in sizes.items())
    names: Sequence[str] = list(sizes)
    rest = [scores[name].flatten().sort(descending=True).values[least[name] :].cpu() for name in names]
    layer = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(part) for part in rest]))
    order = torch.argsort(torch.cat(rest), descending=True, stable=True)
    area = torch.tensor([sizes[name].area for name in names])[layer[order]].cumsum(0)
    taken = layer[order][area <= wanted - sum(least[name] * sizes[name].area for name in names)]
    more = torch.bincount(taken, minlength=len(names)).tolist()
    return {name: least[name] + number for name, number in zip(names, more, strict=True)}
