"""Configurations of the Triton kernels, timed on the GPU that is here: rows for a tuning file.

The code behind ``efcn-sparse tune``. The work model says which configurations are worth trying; each is compared with
the result of the present one before it is timed, and the best of a local search becomes a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efcn_sparse.measure.gpu_clock import Clock
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.ops.backends.triton import plan, search, tuning
from efcn_sparse.ops.backends.triton.device import device_of
from efcn_sparse.ops.backends.triton.tuning import OPERATIONS, Case, Config, Row, trimmed
from efcn_sparse.pattern import BlockPattern

MEASURED = "measured on "
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.float32: 1e-3, torch.float64: 1e-12}
_HOPELESS = 1.5  # times the model's best: not tried
WORTH_A_ROW = 0.98  # of the present time


class Wanted(NamedTuple):
    """A pattern, what it is called, the batch and the dtype of its operands."""

    name: str
    pattern: BlockPattern
    batch: int
    dtype: torch.dtype


@dataclass
class Found:
    """What tuning one case found: times in seconds, and the candidates that were left out, with the reason.

    ``times`` has those that were timed, the present one among them.
    """

    case: Case
    before: float
    after: float
    config: Config
    tried: int
    failed: list[str] = field(default_factory=list)
    finished: bool = True
    times: dict[Config, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """How many tiles of the model are timed first, and how many steps the local search takes at most."""

    starts: int = 8
    steps: int = 6


def tune(
    wanted: Iterable[Wanted],
    output: Path,
    clock: Clock,
    device: str,
    *,
    seconds: float,
    effort: Effort = Effort(),
    tell: Callable[[str], None] = print,
) -> list[Found]:
    """Tune each case that ``output`` has no measured row for, and write its row as soon as it is found.

    Args:
        output: a tuning file; it is made if it is missing, and rows of other cases stay.
        seconds: no candidate is begun later; what is left is done by the next call.

    Raises:
        ValueError: ``output`` is no tuning table.
        RuntimeError: the configuration that is used at present fails.
    """
    deadline, done = time.monotonic() + seconds, []
    mark = device_mark(device)
    jobs = list(problems_of(wanted, device))
    for number, (one, problem) in enumerate(jobs, 1):
        case = plan.case_of(problem)
        table = tuning.read(output) if output.exists() else ()
        place = f"[{number}/{len(jobs)}] {one.name}, N={one.batch}, {problem.operation}"
        if any(row.case == case and row.source.startswith(mark) for row in table):
            tell(f"{place}: measured already")
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            tell(f"{place}: out of time; the same command goes on from here")
            break
        found = tune_one(one, problem, clock, deadline, effort, [row.config for row in table if row.case == case])
        done.append(found)
        gain = f"{1e6 * found.before:.1f} → {1e6 * found.after:.1f} µs ({found.before / found.after:.2f}×)"
        tell(f"{place}: {gain}, {found.tried} tried, {len(found.failed)} left out; {left / 60:.1f} minutes left")
        for reason in found.failed:
            tell(f"    {reason}")
        if found.finished or found.after < found.before:
            tuning.write(output, (*(other for other in table if other.case != case), row_of(problem, found, mark)))
            tuning.forget()
    return done


def row_of(problem: plan.Problem, found: Found, mark: str) -> Row:
    """What a tuning file keeps; ``mark`` says where it was measured."""
    source = f"{mark}: {1e6 * found.after:.1f} µs, before {1e6 * found.before:.1f}"
    return Row(found.case, _for_the_table(problem, found.config), source if found.finished else f"cut short, {source}")


def device_mark(device: str) -> str:
    """What the source of a row begins with that was measured here."""
    return f"{MEASURED}{torch.cuda.get_device_name() if device == 'cuda' else 'the interpreter, a dry run'}"


def tune_one(
    one: Wanted,
    problem: plan.Problem,
    clock: Clock,
    deadline: float,
    effort: Effort = Effort(),
    known: Sequence[Config] = (),
) -> Found:
    """The best configuration for one operation: of ``known`` and the model's tiles, then step by step from there."""
    call = call_of(one, problem)
    present = plan.configure(problem)
    with tuning.only(present):
        expected = call().double()
        before = clock.time(call).seconds
    norm = float(expected.norm())
    times: dict[Config, float] = {present: before}
    found = Found(plan.case_of(problem), before, before, present, 1)

    def attempt(config: Config) -> None:
        try:
            with tuning.only(config):
                error = float((call().double() - expected).norm())
                if not error <= _TOLERANCE[one.dtype] * norm:
                    raise ArithmeticError(f"its result is {error / max(norm, 1e-300):.1g} from the present one's")
                times[config] = clock.time(call).seconds
        except (RuntimeError, ArithmeticError) as error:
            _check_device(problem, error)
            times[config] = float("inf")
            found.failed.append(f"{config}: {_reason(error)}")

    def candidates() -> Iterator[Config]:
        starts = search.starts(problem, present.block_k, effort.starts)
        yield from (trimmed(c, problem.height, c.members or present.members) for c in known)
        yield from starts
        for _ in range(effort.steps):
            best = min(times, key=lambda config: times[config])
            near = search.neighbors(problem, best)
            limit = _HOPELESS * search.expected_seconds(problem, best)
            yield from (config for config in near if search.expected_seconds(problem, config) <= limit)
            if min(times, key=lambda config: times[config]) == best:
                return

    for config in candidates():
        if config in times:
            continue
        if time.monotonic() >= deadline:
            found.finished = False
            break
        attempt(config)
    best = min(times, key=lambda config: times[config])
    if times[best] < WORTH_A_ROW * before:
        found.config, found.after = best, times[best]
    found.tried = len(times)
    found.times = {config: seconds for config, seconds in times.items() if seconds < float("inf")}
    return found


def problems_of(wanted: Iterable[Wanted], device: str) -> Iterator[tuple[Wanted, plan.Problem]]:
    """Each operation of each pattern, on ``device``; of those that the table cannot tell apart the first."""
    seen = set()
    for one in wanted:
        pattern = one.pattern.to(device)
        for operation in OPERATIONS:
            problem = plan.Problem.of(operation, pattern, one.batch, one.dtype, device_of(pattern.crow_indices))
            if pattern.nnz_blocks and (case := plan.case_of(problem)) not in seen:
                seen.add(case)
                yield one._replace(pattern=pattern), problem


def call_of(one: Wanted, problem: plan.Problem) -> Callable[[], Tensor]:
    """The operation on random operands, the same ones at each call and in each process."""
    pattern, device, dtype = one.pattern, one.pattern.device, one.dtype
    out_features, in_features = pattern.shape
    generator = torch.Generator(device).manual_seed(1906)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator).to(dtype)

    if problem.operation == "sddmm":
        a, b = randn(one.batch, out_features), randn(one.batch, in_features)
        return lambda: sddmm(a, b, pattern, backend="triton")
    walk = problem.transpose
    values, x = randn(*pattern.values_shape), randn(one.batch, out_features if walk else in_features)
    return lambda: spmm(x, values, pattern, transpose=walk, backend="triton")


def _for_the_table(problem: plan.Problem, config: Config) -> Config:
    """With the members left to the work model where it would take the same, so that they fit other patterns too."""
    free = replace(config, members=0)
    with tuning.only(free):
        return free if plan.configure(problem) == config else config


def _check_device(problem: plan.Problem, error: Exception) -> None:
    """Go on only if the device still answers: an illegal access stays with the process."""
    if problem.structure.crow_indices.is_cuda:
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise RuntimeError(f"the GPU is lost to this process after {error}; rows so far are written") from lost


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[-200:]
