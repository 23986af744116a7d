"""Other tiles, timed beside the tuning table's own: rows for it, from the run that shows where it is wrong.

Which are tried is known beforehand (``search.alternatives``), so that they are compiled ahead with everything else.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import GOALS, OPERATIONS, Net, Product
from benchmarks.gpu.nets import distinct_layers
from benchmarks.gpu.predict import make_pattern
from efcn_sparse.measure import tune
from efcn_sparse.ops.backends.triton import plan, search, tuning
from efcn_sparse.ops.backends.triton.tuning import Config
from efcn_sparse.pattern import BlockPattern

_MOST = 20  # for an operation
_LONGEST = 15.0  # seconds, of an operation


def measure(bench: Bench, case: Product | Net) -> dict[str, Any]:
    """For a product its operations, for a net those of each kind of layer.

    Raises:
        RuntimeError: all of them fail, or the device is lost.
    """
    if importlib.util.find_spec("triton") is None:
        return vars(case) | {"operations": [], "absent": "triton is not installed"}
    found = [one for name, pattern in _patterns(case) for one in _of_pattern(bench, name, pattern, case)]
    if all("failed" in one for one in found):
        raise RuntimeError(f"every operation failed, the first with {found[0]['failed']}")
    return vars(case) | {"operations": found}


def configs(problem: plan.Problem) -> list[Config]:
    """What is tried for a problem, beside its present configuration."""
    return search.alternatives(problem, plan.configure(problem), _MOST)


def _patterns(case: Product | Net) -> Iterator[tuple[str, BlockPattern]]:
    if isinstance(case, Product):
        yield str(case), make_pattern(case)
    else:
        for layer, count in distinct_layers(case):
            yield f"{case.model} {layer.name} ×{count}", layer.pattern


def _of_pattern(bench: Bench, name: str, pattern: BlockPattern, case: Product | Net) -> Iterator[dict[str, Any]]:
    wanted = tune.Wanted(name, pattern, case.batch, torch.bfloat16)
    for operation, (one, problem) in zip(OPERATIONS, tune.problems_of([wanted], bench.device), strict=True):
        record: dict[str, Any] = {"of": name, "operation": operation}
        try:
            record |= _one(bench, one, problem, case)
        except Exception as failure:
            if bench.is_broken():
                raise
            record["failed"] = f"{type(failure).__name__}: {failure}"[:500]
        yield record


def _one(bench: Bench, one: tune.Wanted, problem: plan.Problem, case: Product | Net) -> dict[str, Any]:
    present, only_these = plan.configure(problem), tune.Effort(starts=0, steps=0)
    tried = configs(problem)[: 2 if bench.dry else None]
    found = tune.tune_one(one, problem, bench.clock, time.monotonic() + _LONGEST, only_these, tried)
    call = tune.call_of(one, problem)

    def with_it(config: Config) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with tuning.only(config):
                return call()

        return run

    calls = {config: with_it(config) for config in (present, found.config)}  # one call, where the present one is best
    dense = [_dense(bench, case, problem.operation)] if isinstance(case, Product) else []
    timings = [timing.seconds for timing in bench.clock.time_together(*calls.values(), *dense)]
    before, after = timings[0], timings[len(calls) - 1]
    found.before, found.after = before, after
    times = sorted(found.times.items(), key=lambda timed: timed[1])
    record: dict[str, Any] = {
        "before": before, "after": after, "present": _told(present), "best": _told(found.config), "tried": found.tried,
        "finished": found.finished, "left_out": found.failed,
        "times": [[_told(config), seconds] for config, seconds in times],
    }  # fmt: skip
    if isinstance(case, Product):
        of_dense = one.pattern.density * timings[-1]
        record |= {"goal": GOALS[case.block], "fraction_before": of_dense / before, "fraction_after": of_dense / after}
    if found.config != present and after < tune.WORTH_A_ROW * before:
        record["row"] = tuning.told(tune.row_of(problem, found, tune.device_mark(bench.device)))
    return record


def _dense(bench: Bench, case: Product, operation: str) -> Callable[[], Tensor]:
    """The dense product of that shape, of full random matrices."""
    full = bench.randn(case.out_features, case.in_features)
    x, dy = bench.randn(case.batch, case.in_features), bench.randn(case.batch, case.out_features)
    return {"spmm": lambda: x @ full.T, "spmm_t": lambda: dy @ full, "sddmm": lambda: dy.T @ x}[operation]


def _told(config: Config) -> str:
    """A configuration in a few characters."""
    text = f"{config.block_m}×{config.block_n}×{config.block_k} rows {config.members} stages {config.stages} "
    text += f"warps {config.warps} swizzle {config.swizzle} pieces {config.pieces}"
    return text + (" descriptors" if config.descriptors else "")
