"""From operands to a configuration and a schedule; asked at each call, worked out at the first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from efcn_sparse.ops.backends.triton import schedule
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.schedule import SpmmTasks, SuperRows, remembered
from efcn_sparse.ops.backends.triton.tiles import Case, Config, best_members, sizes, trimmed
from efcn_sparse.ops.backends.triton.tuning import Choice, choose
from efcn_sparse.pattern import BlockPattern, Structure

_SHORTEST_PIECE, _PROGRAMS_PER_PROCESSOR = 8, 2
_LONGEST_STRETCH = 1 << 30  # the kernel counts its rows in 32 bits


class Problem(NamedTuple):
    """One call: ``operation`` is ``"spmm"``, ``"spmm_t"`` (the transposed walk) or ``"sddmm"``."""

    operation: str
    structure: Structure
    height: int
    width: int
    batch: int
    dtype: torch.dtype
    device: Device

    @classmethod
    def of(cls, operation: str, pattern: BlockPattern, batch: int, dtype: torch.dtype, device: Device) -> Problem:
        """A call of ``operation`` with a pattern."""
        height, width = pattern.block_shape[::-1] if operation == "spmm_t" else pattern.block_shape
        return cls(operation, pattern.structure, height, width, batch, dtype, device)

    @property
    def transpose(self) -> bool:
        """Whether the walk is the column-wise one."""
        return self.operation == "spmm_t"


def case_of(problem: Problem) -> Case:
    """What the choice of a tile depends on, in whole octaves: problems that are nearly alike are one case."""
    structure, blocks = problem.structure, problem.structure.col_indices.numel()
    rows, cols = structure.crow_indices.numel() - 1, structure.ccol_indices.numel() - 1
    density = blocks / max(1, rows * cols)
    outputs = cols if problem.transpose else rows
    results = problem.height * (blocks * problem.width if problem.operation == "sddmm" else outputs)
    return Case(
        problem.operation, problem.device.arch, 8 * problem.dtype.itemsize, problem.height, problem.width,
        1 << max(0, problem.batch - 1).bit_length(), 2.0 ** round(math.log2(density)) if density else 0.0,
        1 << round(math.log2(max(1, results))),
    )  # fmt: skip


def choice_for(problem: Problem) -> Choice:
    """The configuration, its super-rows settled and its stages fitted to the shared memory; and why it is taken.

    Raises:
        RuntimeError: no number of stages fits.
    """
    case = case_of(problem)
    config, why = choose(case, problem.device.processors)
    members = config.members or remembered(
        problem.structure, ("members", case, config, problem.device), lambda: _best_members(problem, case, config)
    )
    return Choice(_fitted(trimmed(config, problem.height, members), problem), why)


def configure(problem: Problem) -> Config:
    """The configuration alone."""
    return choice_for(problem).config


def super_rows(problem: Problem, members: int) -> SuperRows:
    """The super-rows of the problem's walk."""
    walk = problem.transpose
    return remembered(
        problem.structure, ("rows", walk, members), lambda: schedule.super_rows(problem.structure, walk, members)
    )


def spmm_tasks(problem: Problem, config: Config) -> SpmmTasks:
    """The tasks of SpMM: long super-rows are split where they would keep the rest of the device waiting."""
    rows = super_rows(problem, config.members)
    most = config.pieces
    if most == 0:
        tiles = -(-problem.batch // config.block_m) * -(-problem.height * config.members // config.block_n)
        share = rows.cols.numel() * tiles // (_PROGRAMS_PER_PROCESSOR * problem.device.processors)
        most = 1 << max(_SHORTEST_PIECE, share).bit_length()
    return remembered(
        problem.structure, ("spmm", problem.transpose, config.members, most), lambda: schedule.spmm_tasks(rows, most)
    )


def sddmm_tasks(problem: Problem, config: Config) -> Tensor:
    """The tasks of SDDMM."""
    return remembered(
        problem.structure,
        ("sddmm", config.members, problem.width, config.block_m),
        lambda: schedule.sddmm_tasks(super_rows(problem, config.members), problem.width, config.block_m),
    )


def stretches(problem: Problem, config: Config, programs: int) -> tuple[int, int]:
    """``(stretches, rows in each)`` that the batch is cut into, so that few blocks still fill the device."""
    steps = -(-problem.batch // config.block_k)
    wanted = config.pieces
    if wanted == 0:
        wanted = _PROGRAMS_PER_PROCESSOR * problem.device.processors // max(1, programs)
        wanted = min(wanted, steps // _SHORTEST_PIECE)
    each = min(-(-steps // min(max(1, wanted), steps)), _LONGEST_STRETCH // config.block_k)
    return -(-steps // each), each * config.block_k


def shared_memory(config: Config, item: int) -> int:
    """Bytes of operand tiles in flight."""
    return config.stages * (config.block_m + config.block_n) * config.block_k * item


def _fitted(config: Config, problem: Problem) -> Config:
    item, limit = problem.dtype.itemsize, problem.device.shared_memory
    while config.stages > 1 and shared_memory(config, item) > limit:
        config = replace(config, stages=config.stages - 1)
    if shared_memory(config, item) > limit:
        raise RuntimeError(
            f"{problem.operation} in {problem.dtype} needs {shared_memory(config, item)} bytes of shared memory for "
            f"{config}, {problem.device.arch} has {limit}: name smaller tiles in a tuning file"
        )
    return config


def _best_members(problem: Problem, case: Case, config: Config) -> int:
    entries = {size: super_rows(problem, size).cols.numel() for size in sizes(problem.height, config.block_n)}
    return best_members(case, config, entries)
