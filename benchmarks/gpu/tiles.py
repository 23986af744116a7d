"""The work model with what a program costs beside its products: a beginning, an end, and a place on a multiprocessor.

:mod:`work` knows totals: FLOP, L2, memory. Here each program also waits for its first tiles, issues instructions and
stores its results, and while it does, only another program of the same multiprocessor can multiply. The instructions
are counted in the binary; the latency and the clock are leads.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.gpu.predict import Prediction
from benchmarks.gpu.sass import Instructions, instructions
from efcn_sparse.ops.backends.triton import plan, work
from efcn_sparse.ops.backends.triton.search import OVERHEAD

CLOCK = 1.7e9  # Hz, under load
LATENCY = 600 / CLOCK  # s, of a load that nothing hides, mostly from L2
CHAIN = 3  # loads that wait for each other before the first product: the task, its first entry, its tiles
SECOND_KERNEL = 2.5e-6  # s, where pieces are summed
_SCHEDULERS, _BYTES_OF_A_PROCESSOR = 4, 64  # instructions issued, and bytes that come from the L2, in a cycle at most
_REGISTERS, _THREADS = 65536, 2048  # of a multiprocessor


@dataclass(frozen=True)
class Refined:
    """One operation of one case.

    Attributes:
        seconds: at the least; ``bound`` is what sets it: ``"MMA"``, ``"L2"``, ``"memory"``, ``"issue"`` or
            ``"programs"``, which stands for the programs one after the other.
        fraction: of the dense rate, at the most.
        resident: programs that a multiprocessor runs at one time.
        waves: programs over places for them.
        beside: the share of a program's own time in which it does not multiply.
    """

    seconds: float
    bound: str
    fraction: float
    resident: int
    waves: float
    beside: float


def refine(p: Prediction, machine: work.Machine, of_warp: Instructions | None = None) -> Refined:
    """The prediction with its programs' beginnings, ends and places.

    Args:
        of_warp: what its kernel executes; compiled and counted by default.
    """
    problem, config = p.problem, p.config
    groups = list(_programs(p))
    split = _is_split(p)
    of_warp = of_warp or instructions(problem.operation, problem.height, problem.width, config, split)
    processors, item = problem.device.processors, problem.dtype.itemsize
    m, n, k = config.block_m, config.block_n, config.block_k
    peak = machine.flops[16] / processors
    multiply = 2.0 * m * n * k / peak * max(1.0, (16 + n / 4) / (n / 2))  # narrow tiles wait for shared memory
    issue = config.warps / _SCHEDULERS / CLOCK
    load = (m + n) * k * item / (_BYTES_OF_A_PROCESSOR * CLOCK)
    store = m * n * (4 if split else item) / (_BYTES_OF_A_PROCESSOR * CLOCK)
    beside = CHAIN * LATENCY + of_warp.before * issue + max(of_warp.after * issue, store) + LATENCY
    step = max(multiply, of_warp.loop * issue, load)
    resident = residents(of_warp, config.warps, problem.device.shared_memory)
    count = sum(number for number, _ in groups)
    steps = sum(number * length for number, length in groups)
    times = {
        "MMA": steps * multiply / processors,
        "L2": p.work.l2_bytes / machine.l2,
        "memory": p.work.memory_bytes / machine.memory,
        "issue": (steps * of_warp.loop + count * (of_warp.before + of_warp.after)) * issue / processors,
        "programs": _makespan([(number, beside + length * step) for number, length in groups], processors * resident),
    }
    bound = max(times, key=lambda name: times[name])
    seconds = times[bound] + (SECOND_KERNEL if split else 0.0)
    alone = steps * step / max(1, count)
    fraction = p.work.useful_flops / seconds / machine.flops[16]
    return Refined(seconds, bound, fraction, resident, count / (processors * resident), beside / (beside + alone))


def residents(of_warp: Instructions, warps: int, shared_memory: int) -> int:
    """Programs that fit a multiprocessor at one time."""
    registers = -(-of_warp.registers // 8) * 8 * 32 * warps
    by_shared = (shared_memory + OVERHEAD) // (of_warp.shared + OVERHEAD)
    return max(1, min(by_shared, _REGISTERS // registers, _THREADS // (32 * warps)))


def _is_split(p: Prediction) -> bool:
    if p.problem.operation == "sddmm":
        programs = plan.sddmm_tasks(p.problem, p.config).shape[0] * _tiles_n(p)
        return plan.stretches(p.problem, p.config, programs)[0] > 1
    return plan.spmm_tasks(p.problem, p.config).slots > 0


def _programs(p: Prediction) -> Iterator[tuple[int, int]]:
    """How many programs of how many K tiles, in the order of their launch."""
    problem, config = p.problem, p.config
    if problem.operation == "sddmm":
        programs = plan.sddmm_tasks(problem, config).shape[0] * _tiles_n(p)
        count, stretch = plan.stretches(problem, config, programs)
        yield programs * count, -(-min(stretch, problem.batch) // config.block_k)
        return
    each = _tiles_n(p) * -(-problem.batch // config.block_m)
    for entries in plan.spmm_tasks(problem, config).tasks[:, 2].tolist():
        yield each, -(-entries * problem.width // config.block_k)


def _tiles_n(p: Prediction) -> int:
    return -(-p.config.members * p.problem.height // p.config.block_n)


def _makespan(groups: list[tuple[int, float]], places: int) -> float:
    """When the last program ends, if each goes to the place that is free first."""
    free = [0.0] * places
    for number, seconds in groups:
        for _ in range(number):
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)
