"""A model of the work: what a schedule multiplies and moves, and how long that takes at the least.

It chooses the size of super-rows, and is what measurements are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

from efcn_sparse.ops.backends.triton.machines import H200, Machine
from efcn_sparse.ops.backends.triton.tuning import Config, trimmed

__all__ = ["H200", "Machine", "Shape", "Work", "best_members", "candidates", "sddmm_work", "spmm_work"]


@dataclass(frozen=True)
class Work:
    """What one call does.

    Attributes:
        useful_flops, flops: two for each stored entry and batch row; and those of the tiles that are computed.
        l2_bytes: tiles of operands that are loaded, and results that are stored.
        memory_bytes: each operand read and each result written once: the least there is.
    """

    useful_flops: float
    flops: float
    l2_bytes: float
    memory_bytes: float

    def seconds(self, machine: Machine, bits: int) -> float:
        """The least time on ``machine``: of its matrix units, its L2 and its memory, the one with the most to do."""
        return max(self.flops / machine.flops[bits], self.l2_bytes / machine.l2, self.memory_bytes / machine.memory)

    def bound(self, machine: Machine, bits: int) -> str:
        """What sets that time: ``"MMA"``, ``"L2"`` or ``"memory"``."""
        times = {
            "MMA": self.flops / machine.flops[bits],
            "L2": self.l2_bytes / machine.l2,
            "memory": self.memory_bytes / machine.memory,
        }
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Shape:
    """Sizes of one call: blocks ``[height, width]`` along outputs and inputs of W (or of Wᵀ, for the other walk)."""

    height: int
    width: int
    blocks: int
    batch: int
    outputs: int
    inputs: int
    bits: int


def spmm_work(shape: Shape, entries: int, config: Config) -> Work:
    """The work of SpMM with ``entries`` columns of super-rows of ``config.members``."""
    size, wide = shape.bits // 8, shape.height * config.members
    tiles_n, tiles_m = -(-wide // config.block_n), -(-shape.batch // config.block_m)
    stored = shape.blocks * shape.height * shape.width
    tile_rows = tiles_m * config.block_m
    return Work(
        useful_flops=2.0 * shape.batch * stored,
        flops=2.0 * tile_rows * entries * shape.width * tiles_n * config.block_n,
        l2_bytes=size
        * (tile_rows * entries * shape.width * tiles_n + tiles_m * stored + shape.batch * shape.outputs * 1.0),
        memory_bytes=size * (shape.batch * (shape.inputs + shape.outputs) + stored * 1.0),
    )


def sddmm_work(shape: Shape, entries: int, config: Config) -> Work:
    """The work of SDDMM with ``entries`` columns of super-rows of ``config.members``."""
    size, wide = shape.bits // 8, shape.height * config.members
    tiles_n = -(-wide // config.block_n)
    tiles_m = entries * shape.width / config.block_m  # all but the last tile of a super-row are full
    stored = shape.blocks * shape.height * shape.width
    return Work(
        useful_flops=2.0 * shape.batch * stored,
        flops=2.0 * shape.batch * tiles_m * config.block_m * tiles_n * config.block_n,
        l2_bytes=size * (shape.batch * tiles_m * tiles_n * (config.block_m + config.block_n) + stored * 1.0),
        memory_bytes=size * (shape.batch * (shape.inputs + shape.outputs) + stored * 1.0),
    )


def candidates(height: int, block_n: int) -> list[int]:
    """Sizes of super-rows whose outputs fit one N tile."""
    return [size for size in (1, 2, 4, 8, 16) if size == 1 or size * height <= block_n]


def best_members(operation: str, shape: Shape, entries: dict[int, int], config: Config, machine: Machine = H200) -> int:
    """The size of super-rows that takes the least time, by the model; of equals the smaller one.

    Args:
        entries: the number of entries for each size that is possible.
    """
    work = sddmm_work if operation == "sddmm" else spmm_work

    def seconds(members: int) -> float:
        cut = trimmed(config, shape.height, members)
        return work(shape, entries[members], cut).seconds(machine, shape.bits)

    return min(sorted(entries), key=seconds)
