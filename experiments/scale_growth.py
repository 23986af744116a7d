"""Blocks that move in an eFCN made from ResNet-18: memory and time of a growth, and whether its choice is right.

``python -m experiments.scale_growth --pixels 192 --batch 4 --budget 1.05`` scores all blocks of dense
matrices with 2·10¹¹ entries, and prints a page.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from efcn_sparse.embedding import EmbeddedConv, Grown, embed
from efcn_sparse.embedding.plan import plan
from efcn_sparse.gradients import Factors, record_factors
from efcn_sparse.growth import Growth
from efcn_sparse.growth.regrow import Regrown
from efcn_sparse.measure import machine as machines
from efcn_sparse.measure.memory import peak_bytes
from efcn_sparse.models import resnet18
from experiments.held import available_bytes
from experiments.scale import fused_sgd, settled_peak, warm_up
from experiments.scale_page import described, gib

_GIB = 1 << 30
_CLASSES = 1000
_SAMPLED = 8  # blocks of each layer
TOLERANCE = 1e-5


@dataclass(frozen=True)
class GrowthResult:
    """What one process found; bytes over what it held before there was a model.

    Attributes:
        stored, scored, moved: blocks of all layers: held; off the support, so scored; exchanged.
        dense_entries: of the matrices whose gradient is scored.
        weight_bytes: of all values.
        largest_bytes: of one layer's values at most, which are held twice while they move.
        factor_bytes: inputs and gradients of outputs, held from the backward pass until the growth.
        step_peak_bytes, growth_peak_bytes: the most held in a step without, and in one with a growth.
        seconds_step, seconds_growth: of a step, and of the growth after one.
        worst_score: the largest relative error of sampled scores, against products of the factors in fp64.
        overlooked: sampled blocks that score more than the worst of the chosen, and were not chosen.
    """

    pixels: int
    batch: int
    budget: float
    stored: int
    scored: int
    moved: int
    dense_entries: int
    weight_bytes: int
    largest_bytes: int
    factor_bytes: int
    step_peak_bytes: int
    growth_peak_bytes: int
    seconds_step: float
    seconds_growth: float
    worst_score: float
    overlooked: int

    @property
    def bound_bytes(self) -> int:
        """What a growth may hold: a step's peak, the factors, one layer's values once more, and tiles of scores."""
        return self.step_peak_bytes + self.factor_bytes + self.largest_bytes + _GIB // 2

    def wrong(self) -> list[str]:
        """What is not as it must be; empty if all is well."""
        found = []
        if not self.worst_score <= TOLERANCE:
            found.append(f"a score is off by {self.worst_score:.2g}, more than {TOLERANCE:g}")
        if self.overlooked:
            found.append(f"{self.overlooked} sampled blocks score more than one that was chosen")
        if not self.moved:
            found.append("no block has moved")
        if self.growth_peak_bytes > self.bound_bytes:
            found.append(f"a growth must hold at most {gib(self.bound_bytes)}, got {gib(self.growth_peak_bytes)}")
        return found


def check_fits(pixels: int, budget: float, leave: int) -> None:
    """Raise ``MemoryError`` unless the run leaves ``leave`` bytes of this machine's memory to others."""
    with torch.device("meta"):
        stored = plan(resnet18(_CLASSES), torch.empty(1, 3, pixels, pixels), support=Grown(budget)).bytes
    needed, available = int(1.4 * stored) + _GIB, available_bytes()
    if available is not None and needed + leave > available:
        raise MemoryError(
            f"pixels={pixels}, budget={budget:g} needs about {gib(needed)} and must leave {gib(leave)}, "
            f"got {gib(available)} available; take fewer pixels"
        )


def measure(pixels: int, batch: int, budget: float) -> GrowthResult:
    """Embed ResNet-18, take a step, then one after which blocks move; meant for a process of its own."""
    warm_up()
    before = settled_peak()
    torch.manual_seed(1906)
    images, labels = torch.randn(batch, 3, pixels, pixels), torch.randint(_CLASSES, (batch,))
    efcn = embed(resnet18(_CLASSES), images[:1], support=Grown(budget)).train()
    layers = {name: module for name, module in efcn.named_modules() if isinstance(module, EmbeddedConv)}
    optimizer = fused_sgd(efcn)
    growth = Growth(efcn, optimizer, every=2)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with growth.watch():
            F.cross_entropy(efcn(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    settled_peak()
    step()
    growth.step()
    step_peak = peak_bytes() - before
    settled_peak()
    patterns = {name: layer.linear.pattern for name, layer in layers.items()}
    with record_factors(efcn) as factors:
        seconds_step = step()
    start = time.perf_counter()
    done = growth.step()
    seconds_growth = time.perf_counter() - start
    growth_peak = peak_bytes() - before

    checks = [_checked(done[name], factors[f"{name}.linear"], layers[name]) for name in done]
    values = [layer.linear.values for layer in layers.values()]
    return GrowthResult(
        pixels, batch, budget,
        stored=sum(len(one) for one in values),
        scored=sum(math.prod(p.grid) - p.nnz_blocks for p in patterns.values()),
        moved=sum(one.blocks for one in done.values()),
        dense_entries=sum(math.prod(p.shape) for p in patterns.values()),
        weight_bytes=sum(one.nbytes for one in values), largest_bytes=max(one.nbytes for one in values),
        factor_bytes=sum(part.nbytes for pair in factors.values() for part in pair),
        step_peak_bytes=step_peak, growth_peak_bytes=growth_peak, seconds_step=seconds_step,
        seconds_growth=seconds_growth, worst_score=max(error for error, _ in checks),
        overlooked=sum(missed for _, missed in checks),
    )  # fmt: skip


def _checked(done: Regrown, factors: Factors, layer: EmbeddedConv) -> tuple[float, int]:
    """The largest error of sampled chosen scores, and how many sampled blocks should have been chosen and were not."""
    pattern = layer.linear.pattern
    generator = torch.Generator().manual_seed(1)
    some = torch.randint(done.blocks, (_SAMPLED,), generator=generator)
    worst = 0.0
    for at in some.tolist():
        exact = _score(factors, layer, *done.grown[at].tolist())
        worst = max(worst, abs(float(done.gradient_norms[at]) - exact) / exact)
    held = set(zip(pattern.rows_of_blocks().tolist(), pattern.col_indices.tolist(), strict=True))
    dropped = set(map(tuple, done.dropped.tolist()))
    least, missed = float(done.gradient_norms[-1]), 0
    for _ in range(_SAMPLED):
        row, col = (int(torch.randint(side, (1,), generator=generator)) for side in pattern.grid)
        if (row, col) not in held and (row, col) not in dropped:
            missed += _score(factors, layer, row, col) > least * (1 + TOLERANCE)
    return worst, missed


def _score(factors: Factors, layer: EmbeddedConv, row: int, col: int) -> float:
    """The norm of one block of the gradient, from its definition in fp64."""

    def part(factor: Tensor, index: int, side: int) -> Tensor:
        return factor[:, index * side : (index + 1) * side].double()

    height, width = layer.linear.pattern.block_shape
    return float((part(factors.dy, row, height).T @ part(factors.x, col, width)).norm())


def markdown(result: GrowthResult, machine: machines.Machine) -> str:
    """The page that the command prints."""
    rows = [
        ("blocks stored", f"{result.stored:,} ({gib(result.weight_bytes)}, fp32)"),
        ("entries of the dense matrices", f"{result.dense_entries:.3e}"),
        ("blocks scored", f"{result.scored:,}"),
        ("blocks moved", f"{result.moved:,}"),
        ("peak of a step", gib(result.step_peak_bytes)),
        ("inputs and gradients kept for the growth", gib(result.factor_bytes)),
        ("the largest layer's values", gib(result.largest_bytes)),
        ("**peak of a step with a growth**", f"**{gib(result.growth_peak_bytes)}**"),
        ("a step", f"{result.seconds_step:.2f} s"),
        ("the growth after it", f"{result.seconds_growth:.2f} s"),
        ("largest relative error of sampled scores", f"{result.worst_score:.1e}"),
        ("sampled blocks that were overlooked", str(result.overlooked)),
    ]
    wrong = result.wrong()
    lines = [
        f"# A growth of ResNet-18 at {result.pixels} pixels, `Grown({result.budget:g})`, batch {result.batch}",
        "",
        described(machine),
        "", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), "",
        "All within bounds." if not wrong else "\n".join(f"**Wrong:** {line}" for line in wrong),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the page, or with ``--json`` the numbers; 1 if something is wrong, 2 if it would not fit."""
    parser = argparse.ArgumentParser(description="A growth of ResNet-18's eFCN: memory, time, correctness.")
    parser.add_argument("--pixels", type=int, default=192, help="side of the images (default: 192)")
    parser.add_argument("--batch", type=int, default=4, help="images in a step (default: 4)")
    parser.add_argument("--budget", type=float, default=1.05, help="of Grown (default: 1.05)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--leave", type=float, default=6.0, metavar="GIB", help="memory to leave free (default: 6)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = machines.describe(arguments.threads)
    try:
        check_fits(arguments.pixels, arguments.budget, int(arguments.leave * _GIB))
    except MemoryError as error:
        print(f"scale_growth: error: {error}", file=sys.stderr)
        return 2
    result = measure(arguments.pixels, arguments.batch, arguments.budget)
    print(json.dumps(asdict(result)) if arguments.json else markdown(result, machine), end="")
    return 1 if result.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
