"""Expected against measured times of training steps: ``python -m experiments.step_times``."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from efcn_sparse.embedding import embed
from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.measure import machine
from efcn_sparse.measure.step_rates import measure_rates
from efcn_sparse.models import digits_cnn, resnet18, vanilla_cnn
from efcn_sparse.planning.duration import StepTime, expected_time
from efcn_sparse.planning.fused_cost import OPTIMIZERS
from efcn_sparse.planning.predict import predict_step

_WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """A training step with SGD of an eFCN with ``Local()``; ``size`` is one input's."""

    make: Callable[[], nn.Module]
    size: tuple[int, int, int]
    batch: int
    fused: bool = False


CASES = {
    "digits CNN, batch 50": Case(digits_cnn, (1, 20, 20), 50),
    "VanillaCNN, batch 250": Case(vanilla_cnn, (3, 32, 32), 250),
    "VanillaCNN, batch 250, fused": Case(vanilla_cnn, (3, 32, 32), 250, fused=True),
    "ResNet-18 at 64 pixels, batch 8": Case(resnet18, (3, 64, 64), 8),
    "ResNet-18 at 64 pixels, batch 8, fused": Case(resnet18, (3, 64, 64), 8, fused=True),
}


@dataclass(frozen=True)
class StepTimes:
    """What was expected and what was measured, in seconds."""

    expected: StepTime
    steps: list[float]

    @property
    def median(self) -> float:
        """Of the measured steps."""
        return statistics.median(self.steps)


def compare(case: Case, rounds: int) -> StepTimes:
    """The rates of the case's products, what is expected from them, and ``rounds`` steps."""
    with torch.device("meta"):
        work = predict_step(case.make(), torch.empty(case.batch, *case.size), fused=case.fused).work
    rates = measure_rates({product.probe.key: product.probe for product in work.products}.values())
    return StepTimes(expected_time(work, rates), list(_steps(case, rounds)))


def _steps(case: Case, rounds: int) -> Iterator[float]:
    torch.manual_seed(1906)
    images = torch.randn(case.batch, *case.size).contiguous(memory_format=torch.channels_last)
    efcn = embed(case.make(), images[:1]).train()
    make = OPTIMIZERS["sgd"].make
    optimizer = FusedOptimizer(efcn, make) if case.fused else make(list(efcn.parameters()))
    for number in range(_WARM_UP + rounds):
        start = time.perf_counter()
        optimizer.zero_grad()
        efcn(images).square().mean().backward()
        optimizer.step()
        if number >= _WARM_UP:
            yield time.perf_counter() - start


def page(rounds: int) -> Iterator[str]:
    """The lines of a Markdown page."""
    here, start = machine.describe(torch.get_num_threads()), machine.CpuClock.now()
    yield f"{here.cpu}, {here.threads} thread(s) of {here.cores} cores; torch {here.versions['torch']};"
    yield f"{here.extension}; commit {here.commit}, {here.date[:10]}. Medians of {rounds} steps, with quartiles.\n"
    yield "| step | expected | of it in sparse layers | measured | expected / measured |"
    yield "| --- | --- | --- | --- | --- |"
    for name, case in CASES.items():
        found = compare(case, rounds)
        expected = found.expected.seconds
        low, _, high = statistics.quantiles(found.steps, n=4, method="inclusive")
        yield (
            f"| {name} | {1e3 * expected:.3g} ms | {1 - found.expected.rest / expected:.0%} | "
            f"{1e3 * found.median:.3g} ms ({1e3 * low:.3g} to {1e3 * high:.3g}) | {expected / found.median:.2f} |"
        )
    end = machine.CpuClock.now()
    if start is not None and end is not None:
        yield f"\nOther processes took {end.others_since(start):.0%} of the processors meanwhile."


def main(arguments: list[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: as it is)")
    parser.add_argument("--rounds", type=int, default=15, help="steps that are timed (default: 15)")
    chosen = parser.parse_args(arguments)
    if chosen.threads < 1 or chosen.rounds < 2:
        parser.error(f"--threads must be at least 1 and --rounds 2, got {chosen.threads} and {chosen.rounds}")
    torch.set_num_threads(chosen.threads)
    for line in page(chosen.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
