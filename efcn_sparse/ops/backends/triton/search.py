"""Configurations worth trying for a problem, in the order in which the work model prefers them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from efcn_sparse.ops.backends.triton import plan, work
from efcn_sparse.ops.backends.triton.machines import Machine, machine_of
from efcn_sparse.ops.backends.triton.tuning import Config, power_of_two, trimmed

_SIDES = (16, 32, 64, 128, 256)
_DEPTHS = (16, 32, 64, 128)
_WARPS = (4, 8)
_STAGES = (2, 3, 4, 5)
_SWIZZLES = (1, 2, 4, 8, 16, 32)
_MEMBERS = (1, 2, 4, 8, 16)
_PIECES = {"spmm": (0, 8, 16, 32, 64, 128, 256), "sddmm": (0, 1, 2, 4, 8, 16, 32)}
_ACCUMULATORS = 128  # 32-bit registers of a thread that may hold sums; the rest are operands and addresses
_RATES_OF_L2 = (1.0, 1.5, 2.0)  # times the lead: it decides between large tiles and many programs
_TILES_FOR_A_RATE = 4
OVERHEAD = 1024  # bytes of shared memory that each program costs


def expected_seconds(problem: plan.Problem, config: Config, machine: Machine | None = None) -> float:
    """The model's least time, with processors that idle while the last programs run, and with the sums of pieces.

    Args:
        config: its members settled.
    """
    machine = machine or machine_of(problem.device)
    shape, entries = problem.sizes(), plan.super_rows(problem, config.members).cols.numel()
    tiles_n = -(-config.members * problem.height // config.block_n)
    summed = 0  # numbers that are stored as pieces and read again
    if problem.operation == "sddmm":
        done = work.sddmm_work(shape, entries, config)
        programs = plan.sddmm_tasks(problem, config).shape[0] * tiles_n
        count, _ = plan.stretches(problem, config, programs)
        programs *= count
        summed = 0 if count == 1 else count * shape.blocks * shape.height * shape.width
    else:
        done = work.spmm_work(shape, entries, config)
        todo = plan.spmm_tasks(problem, config)
        programs = todo.tasks.shape[0] * tiles_n * -(-problem.batch // config.block_m)
        summed = todo.slots * problem.batch * config.members * problem.height
    processors = problem.device.processors
    waves = -(-programs // processors)
    seconds = done.seconds(machine, shape.bits) * waves * processors / max(1, programs)
    return seconds + 2 * 4 * summed / machine.l2


def fits(problem: plan.Problem, config: Config) -> bool:
    """Whether sums fit the registers, tiles the shared memory, and no side of the tile is wider than it can use."""
    item = problem.dtype.itemsize
    numbers = config.block_m * config.block_n * (2 if problem.dtype == torch.float64 else 1)
    tallest = 256 if problem.operation == "sddmm" else power_of_two(problem.batch)
    return (
        numbers <= 32 * config.warps * _ACCUMULATORS
        and config.warps * 16 <= max(64, config.block_m)
        and config.block_m <= tallest
        and config.block_k <= _deepest(problem)
        and config.block_n <= power_of_two(problem.height * max(1, config.members))
        and plan.shared_memory(config, item) <= problem.device.shared_memory
    )


def _deepest(problem: plan.Problem) -> int:
    return power_of_two(problem.batch if problem.operation == "sddmm" else problem.width)


def tiles(problem: plan.Problem, depth: int) -> Iterator[Config]:
    """Every tile of that depth with every size of super-rows, the fewest warps and the most stages up to 4 that fit.

    The depth is less where there is less to sum over.
    """
    depth = min(depth, _deepest(problem))
    for m, n in itertools.product(_SIDES, _SIDES):
        for members in work.candidates(problem.height, n):
            shapes = (
                trimmed(Config(m, n, depth, warps=warps, stages=stages), problem.height, members)
                for warps, stages in itertools.product(_WARPS, (4, 3, 2))
            )
            if (found := next((config for config in shapes if fits(problem, config)), None)) is not None:
                yield found


def starts(problem: plan.Problem, depth: int, most: int) -> list[Config]:
    """The ``most`` tiles that the model prefers, the best first."""
    distinct = dict.fromkeys(tiles(problem, depth))
    return sorted(distinct, key=lambda config: expected_seconds(problem, config))[:most]


def alternatives(problem: plan.Problem, present: Config, most: int) -> list[Config]:
    """Configurations beside ``present`` that may be the fastest, whatever the L2 turns out to give.

    The tiles that the model prefers for several rates of the L2, each also in so few stages that two programs fit a
    multiprocessor; then what is one step away from ``present``. All of it is known before anything is measured, so that
    it can be compiled ahead.
    """
    found: dict[Config, None] = {}
    machine = machine_of(problem.device)
    distinct = list(dict.fromkeys(tiles(problem, present.block_k)))
    for scale in _RATES_OF_L2:
        rated = replace(machine, l2=scale * machine.l2)
        by_time = sorted(distinct, key=lambda config: expected_seconds(problem, config, rated))
        for config in by_time[:_TILES_FOR_A_RATE]:
            found |= dict.fromkeys((config, _in_pairs(problem, config)))
    found |= dict.fromkeys(neighbors(problem, present))
    found.pop(present, None)
    return list(found)[:most]


def _in_pairs(problem: plan.Problem, config: Config) -> Config:
    """In the most stages that leave room for a second program."""
    room = (problem.device.shared_memory + OVERHEAD) // 2 - OVERHEAD
    fit = (
        replace(config, stages=stages)
        for stages in range(config.stages, 1, -1)
        if plan.shared_memory(replace(config, stages=stages), problem.dtype.itemsize) <= room
    )
    return next(fit, config)


def neighbors(problem: plan.Problem, config: Config) -> list[Config]:
    """Configurations one step away that fit, the model's best first.

    A step doubles or halves a side, warps or members, or takes the next number of stages, swizzle or pieces.
    """
    pieces = _PIECES["sddmm" if problem.operation == "sddmm" else "spmm"]
    scales = {
        "block_m": _SIDES, "block_n": _SIDES, "block_k": _DEPTHS, "warps": _WARPS, "stages": _STAGES,
        "members": _MEMBERS, "swizzle": () if problem.operation == "sddmm" else _SWIZZLES, "pieces": pieces,
    }  # fmt: skip
    found = []
    for name, scale in scales.items():
        now = getattr(config, name)
        lower = [number for number in scale if number < now][-1:]
        higher = [number for number in scale if number > now][:1]
        found += [replace(config, **{name: number}) for number in lower + higher]  # type: ignore[arg-type]
    if problem.operation != "sddmm" and problem.device.fetches_tiles:
        found.append(replace(config, descriptors=not config.descriptors))
    return sorted(filter(lambda c: fits(problem, c), found), key=lambda c: expected_seconds(problem, c))
