"""Tiles of the Triton kernels, timed on the GPU that is here: rows for a tuning file. The code behind ``tune``.

Each candidate is compared with the result of the present tile before it is timed; the fastest becomes a row.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from efcn_sparse.checkpoint.atomic import write_text_atomically
from efcn_sparse.measure.gpu_clock import Clock
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.ops.backends.triton import plan, tiles, tuning
from efcn_sparse.ops.backends.triton.device import device_of
from efcn_sparse.ops.backends.triton.tiles import Config
from efcn_sparse.pattern import BlockPattern

_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1e-2, torch.float32: 1e-3, torch.float64: 1e-12}
_TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (128, 64), (64, 128), (64, 64), (64, 32))
_SUMS_OF_A_THREAD = 128  # more do not fit the registers beside operands and addresses
_WORTH_A_ROW = 0.98  # of the present time


class Wanted(NamedTuple):
    """A pattern, what it is called, the batch and the dtype of its operands."""

    name: str
    pattern: BlockPattern
    batch: int
    dtype: torch.dtype


@dataclass
class Found:
    """What tuning one case found; times in seconds, and the candidates that were left out, with the reason."""

    case: tiles.Case
    before: float
    after: float
    config: Config
    tried: int = 1
    failed: list[str] = field(default_factory=list)
    finished: bool = True


def tune(
    wanted: Iterable[Wanted],
    output: Path,
    clock: Clock,
    device: str,
    *,
    seconds: float,
    most: int | None = None,
    tell: Callable[[str], None] = print,
) -> list[Found]:
    """Tune each case that ``output`` has no measured row for, and write its row as soon as it is found.

    Args:
        output: a tuning file; it is made if it is missing, and rows of other cases stay.
        seconds: no candidate is begun later; what is left is done by the next call.
        most: candidates of a case; all of them by default.

    Raises:
        ValueError: ``output`` is no tuning table.
        RuntimeError: the configuration that is used at present fails, or the GPU no longer answers.
    """
    deadline, done = time.monotonic() + seconds, []
    mark = f"measured on {torch.cuda.get_device_name() if device == 'cuda' else 'the interpreter, a dry run'}"
    jobs = list(problems_of(wanted, device))
    for number, (one, problem) in enumerate(jobs, 1):
        case = plan.case_of(problem)
        table = tuning.read(output) if output.exists() else ()
        place = f"[{number}/{len(jobs)}] {one.name}, N={one.batch}, {problem.operation}"
        if any(row.case == case and row.source.startswith(mark) for row in table):
            tell(f"{place}: measured already")
            continue
        if time.monotonic() >= deadline:
            tell(f"{place}: out of time; the same command goes on from here")
            break
        found = tune_one(one, problem, clock, deadline, most)
        done.append(found)
        gain = f"{1e6 * found.before:.1f} → {1e6 * found.after:.1f} µs ({found.before / found.after:.2f}×)"
        tell(f"{place}: {gain}, {found.tried} tried, {len(found.failed)} left out")
        for reason in found.failed:
            tell(f"    {reason}")
        if found.finished or found.after < found.before:
            source = f"{mark}: {1e6 * found.after:.1f} µs, before {1e6 * found.before:.1f}"
            row = tuning.Row(case, found.config, source if found.finished else f"cut short, {source}")
            write(output, (*(other for other in table if other.case != case), row))
            tuning.forget()
    return done


def tune_one(one: Wanted, problem: plan.Problem, clock: Clock, deadline: float, most: int | None = None) -> Found:
    """The best configuration for one operation: of :func:`candidates`, then of the sizes of super-rows for the best."""
    call, case = call_of(one, problem), plan.case_of(problem)
    present = tuning.choose(case, problem.device.processors).config
    with tuning.only(present):
        expected, seen = call().double(), {plan.configure(problem)}
        before = clock.time(call).seconds
    times, found = {present: before}, Found(case, before, before, present)

    def attempt(config: Config) -> None:
        try:
            with tuning.only(config):
                settled = plan.configure(problem)
                if settled in seen:
                    return
                seen.add(settled)
                error = float((call().double() - expected).norm() / expected.norm().clamp(min=1e-300))
                if not error <= _TOLERANCE[one.dtype]:
                    raise ArithmeticError(f"its result is {error:.1g} from the present one's")
                times[config] = clock.time(call).seconds
        except (RuntimeError, ArithmeticError) as error:
            _check_device(problem, error)
            found.failed.append(f"{config}: {' '.join(str(error).split())[-200:]}")
        found.tried += 1

    def order() -> Iterator[Config]:
        yield from candidates(problem, present)
        best = min(times, key=lambda config: times[config])
        yield from (replace(best, members=size) for size in tiles.sizes(problem.height, best.block_n))

    for config in itertools.islice(order(), most):
        if time.monotonic() >= deadline:
            found.finished = False
            break
        attempt(config)
    best = min(times, key=lambda config: times[config])
    if times[best] < _WORTH_A_ROW * before:
        found.config, found.after = best, times[best]
    return found


def candidates(problem: plan.Problem, present: Config) -> Iterator[Config]:
    """Tiles that fit the registers, with the most stages that fit the shared memory and with one less."""
    wide = 2 if problem.dtype == torch.float64 else 1
    for m, n in _TILES:
        warps = 8 if m * n > 8192 else 4
        if m * n * wide > 32 * warps * _SUMS_OF_A_THREAD:
            continue
        config = replace(present, block_m=m, block_n=n, warps=warps, members=0, stages=4)
        while config.stages > 1 and plan.shared_memory(config, problem.dtype.itemsize) > problem.device.shared_memory:
            config = replace(config, stages=config.stages - 1)
        yield from (replace(config, stages=stages) for stages in {config.stages, max(2, config.stages - 1)})


def problems_of(wanted: Iterable[Wanted], device: str) -> Iterator[tuple[Wanted, plan.Problem]]:
    """Each operation of each pattern, on ``device``; of those that the table cannot tell apart the first."""
    seen = set()
    for one in wanted:
        pattern = one.pattern.to(device)
        for operation in tiles.OPERATIONS:
            problem = plan.Problem.of(operation, pattern, one.batch, one.dtype, device_of(pattern.device))
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


def write(path: Path, table: tuple[tuning.Row, ...]) -> None:
    """A tuning file, put in the place of the old one at once."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in table]
    write_text_atomically(path, '{"rows": [\n  ' + ",\n  ".join(lines) + "\n]}\n")


def _check_device(problem: plan.Problem, error: Exception) -> None:
    """Go on only if the device still answers: an illegal access stays with the process."""
    if problem.structure.crow_indices.is_cuda:
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise RuntimeError(f"the GPU is lost to this process after {error}; rows so far are written") from lost
