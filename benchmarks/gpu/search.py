"""Tiles and super-rows that the work model prefers to those of the tuning table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from benchmarks.gpu.cases import OPERATIONS, Product, grid
from benchmarks.gpu.predict import SM90, Prediction, make_pattern, predict, tile_of
from efcn_sparse.ops.backends.triton import plan, work
from efcn_sparse.ops.backends.triton.tuning import Config, trimmed
from efcn_sparse.pattern import BlockPattern

WORTH_IT = 1.05  # least gain that is listed
_ACCUMULATORS = 128  # fp32 numbers in registers of a thread, the rest being operands and addresses
_STAGES = (4, 3)
_WARPS = (4, 8)


def better(machine: work.Machine, batch: int, size: tuple[int, int]) -> str:
    """Markdown: cases for which another configuration takes at least 5% less, by the model and its waves."""
    lines = ["| block | density | operation | tuned tile, rows | of dense | found tile, rows | of dense | gain |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for case in grid([size], [batch]):
        pattern = make_pattern(case)
        for operation in OPERATIONS:
            tuned = predict(case, pattern, operation, machine)
            found = min(_all(case, pattern, operation, machine, tuned.config.block_k), key=seconds)
            gain = seconds(tuned) / seconds(found)
            if gain >= WORTH_IT:
                both = f"{_text(tuned, machine)} | {_text(found, machine)}"
                lines.append(f"| {case.block} | {case.density:.0%} | {operation} | {both} | {gain:.2f} |")
    return "\n".join(lines)


def seconds(p: Prediction) -> float:
    """The model's time, stretched by processors that idle while the last programs run."""
    programs = _programs(p)
    waves = -(-programs // SM90.processors)
    return p.seconds * waves * SM90.processors / max(1, programs)


def _programs(p: Prediction) -> int:
    tiles_n = -(-p.config.members * p.problem.height // p.config.block_n)
    if p.problem.operation == "sddmm":
        programs = plan.sddmm_tasks(p.problem, p.config).shape[0] * tiles_n
        return programs * plan.stretches(p.problem, p.config, programs)[0]
    return plan.spmm_tasks(p.problem, p.config).tasks.shape[0] * tiles_n * -(-p.problem.batch // p.config.block_m)


def _all(case: Product, pattern: BlockPattern, operation: str, machine: work.Machine, k: int) -> Iterator[Prediction]:
    """Every tile that fits, of the tuned depth: the model does not see depth."""
    for m, n in itertools.product((64, 128, 256), (16, 32, 64, 128, 256)):
        fitting = [Config(m, n, k, warps=w, stages=s) for w, s in itertools.product(_WARPS, _STAGES)]
        fitting = [c for c in fitting if m * n <= 32 * c.warps * _ACCUMULATORS and c.warps * 16 <= m
                   and plan.shared_memory(c, 2) <= SM90.shared_memory]  # fmt: skip
        if not fitting:
            continue
        for members in work.candidates(case.block, n):
            yield predict(case, pattern, operation, machine, trimmed(fitting[0], case.block, members))


def _text(p: Prediction, machine: work.Machine) -> str:
    rate = p.work.useful_flops / seconds(p) / machine.flops[16]
    return f"{tile_of(p.config)}, {p.config.members} | {rate:.2f}"
