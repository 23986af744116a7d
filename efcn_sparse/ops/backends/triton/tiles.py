"""Tiles by rule: a short one for each architecture, from the block, the dtype, the batch and the size of the result.

The rules are reasoned, not measured: the largest tile that leaves no multiprocessor without a program, because larger
tiles load fewer bytes for each product. What was measured is a row of a tuning file, and comes first (``tuning.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

OPERATIONS = ("spmm", "spmm_t", "sddmm")


@dataclass(frozen=True)
class Config:
    """How one kernel is cut and launched.

    Attributes:
        block_m, block_n, block_k: the tile of the product, powers of two from 16 up. For ``spmm`` M is the batch, N the
            outputs and K the inputs; for ``sddmm`` M is the columns of the blocks, N their rows and K the batch.
        members: block rows that are joined to a super-row; 0: by :func:`best_members` for the pattern.
        swizzle: block rows that are computed together for one tile of the batch.
        pieces: ``spmm``: the most entries of a task, 0: by the size of the device; ``sddmm``: the stretches of the
            batch, 0: by the size of the device.
        warps, stages: of Triton.
    """

    block_m: int
    block_n: int
    block_k: int
    members: int = 0
    swizzle: int = 8
    pieces: int = 0
    warps: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            side = getattr(self, name)
            if not isinstance(side, int) or side < 16 or side & (side - 1):
                raise ValueError(f"{name} must be a power of two of at least 16, got {side!r}")
        for name, least in (("members", 0), ("swizzle", 1), ("pieces", 0), ("warps", 1), ("stages", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {getattr(self, name)!r}")

    def __str__(self) -> str:
        joined = f", {self.members} block rows joined" if self.members > 1 else ""
        tile = f"{self.block_m}×{self.block_n}×{self.block_k}"
        return f"tile {tile}, {self.warps} warps, {self.stages} stages{joined}"


@dataclass(frozen=True)
class Case:
    """What a configuration is wanted for.

    Attributes:
        operation: ``"spmm"``, ``"spmm_t"`` (the transposed walk) or ``"sddmm"``.
        arch: ``"sm80"``, ``"sm90"``, ``"sm100"``, ``"gfx942"`` or the like, or ``"interpreter"``.
        bits: of an operand: 16, 32 or 64.
        height, width: of a block, along the outputs of the operation and along its inputs.
        batch, density: rows of x, and stored blocks over all blocks.
        results: numbers of the result: outputs of one row of the batch, for ``sddmm`` stored entries.
    """

    operation: str
    arch: str
    bits: int
    height: int
    width: int
    batch: int
    density: float
    results: int


@dataclass(frozen=True)
class ArchRule:
    """Of one architecture.

    Attributes:
        tiles: (M, N, warps) for 16-bit operands, the largest first.
        stages: the most that operands are loaded ahead.
        balance: N of the tile at which multiplying takes as long as loading the tile of x from L2; a guess.
    """

    tiles: tuple[tuple[int, int, int], ...]
    stages: int
    balance: int


_TILES = ((128, 128, 8), (64, 128, 4), (64, 64, 4), (64, 32, 4))
RULES = {
    "sm80": ArchRule(_TILES, stages=4, balance=64),
    "sm90": ArchRule(((256, 128, 8), *_TILES), stages=4, balance=128),
    "sm100": ArchRule(_TILES, stages=4, balance=256),
    "gfx942": ArchRule(_TILES, stages=2, balance=128),
}
_BUSY = 0.9  # share of the multiprocessors that must have a program
_STRETCH = 1024  # rows of the batch that are worth a program of their own in sddmm


def family(arch: str) -> str:
    """The rule for ``arch``: that of the same matrix instructions, which GeForce's newest share with ``"sm80"``."""
    if arch.startswith("gfx"):
        return "gfx942"
    generation = arch.removeprefix("sm")[:-1]
    return {"8": "sm80", "10": "sm100", "11": "sm100", "12": "sm80"}.get(generation, "sm90")


def by_rule(case: Case, processors: int) -> tuple[Config, str]:
    """The tile for a case on a device with that many multiprocessors, and why."""
    sampled = case.operation == "sddmm"
    if case.arch == "interpreter":  # which takes as long as there are programs
        return Config(64, 64, 64, members=4, pieces=1 if sampled else 16), "the interpreter's"
    name = family(case.arch)
    rule, depth = RULES[name], power_of_two(case.batch if sampled else case.width)
    if case.bits == 64:
        return Config(64, 32, 16, stages=min(3, rule.stages)), f"rule of {name} for 64 bits"
    if case.bits == 32:
        return Config(64, 64, min(32, depth), stages=min(3, rule.stages)), f"rule of {name} for 32 bits"
    numbers = case.results * (max(1, case.batch // _STRETCH) if sampled else case.batch)
    fits = (tile for tile in rule.tiles if tile[0] * tile[1] * _BUSY * processors <= numbers)
    m, n, warps = next(fits, rule.tiles[-1])
    if not sampled:
        m = min(m, max(64, power_of_two(case.batch)))
    why = f"rule of {name}: the largest tile that keeps {processors} multiprocessors busy"
    return Config(m, n, min(64, depth), warps=warps if m * n > 8192 else 4, stages=rule.stages), why


def best_members(case: Case, config: Config, entries: Mapping[int, int]) -> int:
    """How many neighboring block rows to join: a tile of x is then loaded once for all, but zeros are multiplied too.

    Args:
        entries: for each size that is possible the columns of all super-rows of that size.
    """
    balance = RULES[family(case.arch)].balance

    def cost(size: int) -> float:
        wide = trimmed(config, case.height, size).block_n
        loads = 1 + wide / config.block_m if case.operation == "sddmm" else 1
        return entries[size] * -(-case.height * size // wide) * max(loads, wide / balance)

    return min(sorted(entries), key=cost)


def sizes(height: int, block_n: int) -> list[int]:
    """Sizes of super-rows whose outputs fit one N tile."""
    return [size for size in (1, 2, 4, 8, 16) if size == 1 or size * height <= block_n]


def power_of_two(number: int) -> int:
    """The least power of two of at least ``number``, and at least 16: a side of a tile."""
    return max(16, 1 << (number - 1).bit_length())


def trimmed(config: Config, height: int, members: int) -> Config:
    """The configuration for that many members: no N tile wider than their outputs."""
    return replace(config, members=members, block_n=min(config.block_n, power_of_two(height * members)))
