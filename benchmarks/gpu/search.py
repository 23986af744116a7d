"""Tiles and super-rows that the work model prefers to those of the tuning table.

    python benchmarks/gpu/search.py --arch sm90            # rows that the table lacks, and what they gain
    python benchmarks/gpu/search.py --arch sm90 --write    # adds them to it

Cases are the benchmark's patterns at several sizes and batches, and the layers of nets. A row is added as long as it
saves enough by the model, over all cases to which it is nearest; the tiles that are tried are those that the table has
for that GPU already, and smaller ones. What is added must go through ``benchmarks/gpu/compile_ahead.py``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.gpu.cases import BATCHES, OPERATIONS, SIZES, SMALL_NETS, Net, grid
from benchmarks.gpu.nets import distinct_layers
from benchmarks.gpu.predict import NAMES, SM90, Prediction, make_pattern, predict, tile_of
from efcn_sparse.ops.backends.triton import plan, search, tuning, work
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.machines import machine_of
from efcn_sparse.ops.backends.triton.tuning import Case, Config, Row, trimmed
from efcn_sparse.pattern import BlockPattern

SMALLER = ((128, 128), (64, 128), (128, 64), (64, 64), (64, 32))
SMALLER_DW = tuple(tile for tile in SMALLER if tile != (64, 128))  # which spills with masks, in four warps
WORTH_IT = 1.05  # least gain that is listed
WORTH_A_ROW = 0.6  # octaves of time, over all cases together
WEIGHT_OF_BENCHMARKS = 3.0  # of a case that is measured, beside one of another size
SOURCE = "chosen by the work model; not yet measured on hardware"
DEVICES = {
    "sm80": Device("sm80", 108, 163 * 1024),
    "sm90": SM90,
    "sm100": Device("sm100", 148, 227 * 1024),
    "gfx942": Device("gfx942", 304, 64 * 1024),
}
_OTHER_SIZES = ((1024, 1024), (16384, 16384))
_NETS = (*SMALL_NETS, Net("resnet18", 224, 64), Net("resnet18", 224, 256))


def better(machine: work.Machine, batch: int, size: tuple[int, int]) -> str:
    """Markdown: cases for which another configuration takes at least 5% less, by the model and its waves."""
    lines = ["| block | density | operation | tuned tile, rows | of dense | found tile, rows | of dense | gain |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for case in grid([size], [batch]):
        pattern = make_pattern(case)
        for operation in OPERATIONS:
            tuned = predict(case, pattern, operation, machine)
            best = search.starts(tuned.problem, tuned.config.block_k, most=1)[0]
            found = predict(case, pattern, operation, machine, best)
            gain = seconds(tuned, machine) / seconds(found, machine)
            if gain >= WORTH_IT:
                both = f"{_text(tuned, machine)} | {_text(found, machine)}"
                lines.append(f"| {case.block} | {case.density:.0%} | {operation} | {both} | {gain:.2f} |")
    return "\n".join(lines)


def seconds(p: Prediction, machine: work.Machine) -> float:
    """The model's time, with processors that idle while the last programs run."""
    return search.expected_seconds(p.problem, p.config, machine)


def _text(p: Prediction, machine: work.Machine) -> str:
    rate = p.work.useful_flops / seconds(p, machine) / machine.flops[16]
    return f"{tile_of(p.config)}, {p.config.members} | {rate:.2f}"


# -- rows for the table ------------------------------------------------------------------------------------------


@dataclass
class Wanted:
    """One case of the table: a problem of that kind, and how long each configuration takes for it by the model."""

    case: Case
    problem: plan.Problem
    seconds: dict[Config, float]
    weight: float

    def of(self, config: Config) -> float:
        """Seconds with a configuration, its members settled as for a call."""
        if config not in self.seconds:
            with tuning.only(config):
                settled = plan.configure(self.problem)
            self.seconds[config] = search.expected_seconds(self.problem, settled)
        return self.seconds[config]


def problems(device: Device) -> Iterator[tuple[plan.Problem, float]]:
    """Benchmark patterns, layers of nets and patterns of other sizes, in bf16, each with its weight."""
    patterns: list[tuple[BlockPattern, tuple[int, ...], float]] = [
        (make_pattern(case), BATCHES, WEIGHT_OF_BENCHMARKS) for case in grid(SIZES, [0])
    ]
    patterns += [
        (layer.pattern, (net.batch,), WEIGHT_OF_BENCHMARKS) for net in _NETS for layer, _ in distinct_layers(net)
    ]
    patterns += [
        (make_pattern(case), BATCHES, 1.0)
        for case in grid(_OTHER_SIZES, [0])
        if case.block > 16 or case.out_features < 16384
    ]
    for pattern, batches, weight in patterns:
        for batch, operation in itertools.product(batches, OPERATIONS):
            yield plan.Problem.of(NAMES[operation], pattern, batch, torch.bfloat16, device), weight


def pool(table: tuple[Row, ...], arch: str, operation: str) -> list[Config]:
    """The configurations of the table for that operation on that GPU, members free, and smaller ones."""
    found: dict[Config, None] = {}
    for row in table:
        if (row.case.arch, row.case.operation, row.case.bits) == (arch, operation, 16):
            config = replace(row.config, members=0)
            found[config] = None
            for m, n in SMALLER_DW if operation == "sddmm" else SMALLER:
                if m * n < config.block_m * config.block_n:
                    found[
                        replace(
                            config,
                            block_m=m,
                            block_n=n,
                            warps=8 if m * n > (4096 if operation == "sddmm" else 8192) else 4,
                        )
                    ] = None
    return list(found)


def lacking(arch: str, table: tuple[Row, ...], worth: float = WORTH_A_ROW) -> list[tuple[Row, float]]:
    """Rows that the table lacks for a GPU, the most useful first, each with the octaves of time it saves.

    One after the other, the row is taken that saves most over all cases together: for its own and for those to which it
    is nearest. Rows that save less than ``worth`` altogether would follow the model's noise.
    """
    wanted: dict[Case, Wanted] = {}
    for problem, weight in problems(DEVICES[arch]):
        case = plan.case_of(problem)
        wanted.setdefault(case, Wanted(case, problem, {}, weight))
    added = []
    for operation in tuning.OPERATIONS:
        of = [each for each in wanted.values() if each.case.operation == operation]
        rows = [
            row for row in table if row.case.arch == arch and row.case.bits == 16 and row.case.operation == operation
        ]
        configs = pool(table, arch, operation)
        tables = [[math.log2(each.of(c)) if _suits(c, each.problem) else math.inf for c in configs] for each in of]
        costs = torch.tensor(tables, dtype=torch.float64).nan_to_num(posinf=1e3)
        weights = torch.tensor([each.weight for each in of], dtype=torch.float64)
        apart = torch.tensor([[a.case.distance(b.case) for b in of] for a in of], dtype=torch.float64)
        now = torch.tensor([min((each.case.distance(r.case), i) for i, r in enumerate(rows)) for each in of])
        distance, cost = (
            now[:, 0].double(),
            torch.tensor(
                [math.log2(each.of(rows[int(i)].config)) for each, i in zip(of, now[:, 1], strict=True)],
                dtype=torch.float64,
            ),
        )
        while True:
            reached = (apart < distance[:, None]) * weights[:, None]  # [case, place of a new row]
            saved = (reached.T @ cost)[:, None] - reached.T @ costs
            most, at = saved.flatten().max(0)
            if most < worth:
                break
            place, which = divmod(int(at), len(configs))
            added.append((Row(of[place].case, configs[which], SOURCE), float(most)))
            near = reached[:, place] > 0
            distance, cost = torch.where(near, apart[:, place], distance), torch.where(near, costs[:, which], cost)
    return added


def _suits(config: Config, problem: plan.Problem) -> bool:
    """Whether it fits, at the depth that the table has for such blocks: the model does not see depth."""
    if problem.operation == "sddmm":
        depth = 64 if problem.batch > 256 and problem.device.arch != "gfx942" else 32
    else:
        depth = min(64, tuning.power_of_two(problem.width))
    if problem.operation == "sddmm" and problem.height <= 16 and config.block_m * config.block_n > 16384:
        return False  # with masks its stores spill
    return config.block_k == depth and search.fits(problem, trimmed(config, problem.height, 16))


def main(arguments: list[str] | None = None) -> int:
    """Print what is lacking; with ``--write`` add it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=list(DEVICES), default=["sm90"])
    parser.add_argument("--write", action="store_true", help="add the rows to tuning.json")
    options = parser.parse_args(arguments)
    table = tuning.read(tuning.TABLE)
    for arch in options.arch:
        found = lacking(arch, table)
        for row, gain in found:
            case = row.case
            print(f"{case.operation} {arch} {case.height}×{case.width}, N={case.batch}, density {case.density:.4f}, "
                  f"{case.results} results: {tile_of(row.config)}, saves {gain:.2f} octaves")  # fmt: skip
        print(f"{len(found)} rows; ceilings of {machine_of(DEVICES[arch]).name}")
        table += tuple(row for row, _ in found)
    if options.write:
        tuning.write(tuning.TABLE, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
