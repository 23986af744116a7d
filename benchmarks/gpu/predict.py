"""What the work model says of the benchmark patterns, before anything is measured.

    python benchmarks/gpu/predict.py [--device h100 h200] [--batch 8192] [--size 4096x4096] [--traffic] [--programs]
    python benchmarks/gpu/predict.py --net resnet18           # its layers
    python benchmarks/gpu/predict.py --steps                  # whole training steps, CNN and eFCN
    python benchmarks/gpu/predict.py --search                 # tiles that the model would prefer

Runs anywhere. Schedules are made as on that GPU; times are the model's least times there, not measurements.
``--ceilings`` takes rates that ``run.py`` measured, ``--l2`` another rate of the L2. ``--traffic`` also follows which
tiles the schedule finds in the L2, and so what it moves through memory (a minute). ``--programs`` adds what programs
cost beside their products, counted in the compiled kernels (needs Triton's tools for NVIDIA GPUs; a minute). ``--tile``
takes one tile for everything, with as many joined rows as then are best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.gpu.cases import BATCHES, GOALS, OPERATIONS, PREDICTED_NETS, SIZES, Product, grid
from efcn_sparse.ops.backends.triton import plan, work
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.machines import H100, H200
from efcn_sparse.ops.backends.triton.tuning import Config, trimmed
from efcn_sparse.pattern import BlockPattern

NAMES = {"forward": "spmm", "dx": "spmm_t", "dw": "sddmm"}
SM90 = Device("sm90", 132, 227 * 1024)
MACHINES = {"h100": H100, "h200": H200}


@dataclass(frozen=True)
class Prediction:
    """One operation of one case.

    Attributes:
        config: tiles and super-rows.
        work: what the schedule does.
        bound: what sets the time.
        fraction: of the dense rate, at the most.
        l2_for_goal: bytes/s that the L2 must deliver for the goal.
    """

    problem: plan.Problem
    config: Config
    work: work.Work
    seconds: float
    bound: str
    fraction: float
    l2_for_goal: float


def make_pattern(case: Product, device: str = "cpu") -> BlockPattern:
    """The case's pattern, the same on every machine."""
    generator = torch.Generator().manual_seed(1906)
    shape, block = (case.out_features, case.in_features), (case.block, case.block)
    return BlockPattern.random(shape, block, case.density, generator).to(device)


def problem_of(case: Product, pattern: BlockPattern, operation: str, machine: work.Machine = H200) -> plan.Problem:
    """The problem as an H100 or H200 meets it, in bf16."""
    return plan.Problem.of(NAMES[operation], pattern, case.batch, torch.bfloat16, replace(SM90, name=machine.name))


def predict(
    case: Product,
    pattern: BlockPattern,
    operation: str,
    machine: work.Machine = H200,
    config: Config | None = None,
) -> Prediction:
    """The prediction for the tuned configuration, or for another one."""
    problem = problem_of(case, pattern, operation, machine)
    config = config or plan.configure(problem)
    entries = plan.super_rows(problem, config.members).cols.numel()
    count = work.sddmm_work if operation == "dw" else work.spmm_work
    done = count(problem.sizes(), entries, config)
    seconds = done.seconds(machine, 16)
    goal_seconds = done.useful_flops / (GOALS[case.block] * machine.flops[16])
    return Prediction(
        problem, config, done, seconds, done.bound(machine, 16), done.useful_flops / seconds / machine.flops[16],
        done.l2_bytes / goal_seconds,
    )  # fmt: skip


def memory_allows(p: Prediction, machine: work.Machine) -> float:
    """The most of the dense rate that a schedule could reach which moves each operand once."""
    least = max(p.work.useful_flops / machine.flops[16], p.work.memory_bytes / machine.memory)
    return p.work.useful_flops / least / machine.flops[16]


def table(
    machines: Sequence[work.Machine],
    batch: int,
    size: tuple[int, int],
    with_traffic: bool,
    with_programs: bool = False,
    tile: Config | None = None,
) -> str:
    """Markdown, for the patterns of that size with that batch: for each machine the bound, and fractions of dense."""
    from benchmarks.gpu.traffic import hbm_bytes

    heads = ["block", "density", "operation", "tile", "rows joined", "useful GFLOP", "computed", "least MB"]
    heads += [*(["HBM MB"] if with_traffic else []), "L2 MB"]
    for machine in machines:
        heads += [f"{machine.name}: bound by", "least µs", "memory allows", "of dense, at most",
                  *(["with programs"] if with_programs else [])]  # fmt: skip
    heads += ["goal", "L2 TB/s for the goal"]
    lines = [heads, ["---"] * len(heads)]
    for case in grid([size], [batch]):
        pattern = make_pattern(case)
        for operation in OPERATIONS:
            config = None if tile is None else _joined(case, pattern, operation, machines[0], tile)
            p = predict(case, pattern, operation, machines[0], config)
            moved = [f"{hbm_bytes(p.problem, p.config) / 1e6:.0f}"] if with_traffic else []
            cells = [
                str(case.block), f"{case.density:.0%}", operation, tile_of(p.config), str(p.config.members),
                f"{p.work.useful_flops / 1e9:.0f}", f"{p.work.flops / 1e9:.0f}", f"{p.work.memory_bytes / 1e6:.0f}",
                *moved, f"{p.work.l2_bytes / 1e6:.0f}",
            ]  # fmt: skip
            for machine in machines:
                p = predict(case, pattern, operation, machine, p.config)
                cells += [p.bound, f"{1e6 * p.seconds:.0f}", f"{memory_allows(p, machine):.2f}", f"{p.fraction:.2f}",
                          *([_with_programs(p, machine)] if with_programs else [])]  # fmt: skip
            lines.append([*cells, f"{GOALS[case.block]:.2f}", f"{p.l2_for_goal / 1e12:.1f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _joined(case: Product, pattern: BlockPattern, operation: str, machine: work.Machine, tile: Config) -> Config:
    configs = [trimmed(tile, case.block, size) for size in work.candidates(case.block, tile.block_n)]
    return min(configs, key=lambda config: predict(case, pattern, operation, machine, config).seconds)


def _with_programs(p: Prediction, machine: work.Machine) -> str:
    from benchmarks.gpu.tiles import refine

    return f"{refine(p, machine).fraction:.2f}"


def measured(path: Path) -> work.Machine:
    """The ceilings that a run of ``run.py`` wrote; its L2 rate where it has one.

    Raises:
        ValueError: the run has none.
    """
    records = {r["name"]: r.get("result") for r in json.loads(path.read_text(encoding="utf-8"))["records"]}
    found, where = records.get("ceilings"), records.get("environment") or {}
    if not found:
        raise ValueError(f"{path} must have a record of ceilings")
    rates = dict(work.H200.flops) | {16: found["flops"]}
    name = f"{where.get('device', path.stem)}, measured"
    return work.Machine(name, rates, l2=found["l2"] or work.H200.l2, memory=found["memory"])


def tile_of(config: Config) -> str:
    """``M×N×K``."""
    return f"{config.block_m}×{config.block_n}×{config.block_k}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", choices=sorted(MACHINES), default=list(MACHINES))
    parser.add_argument("--ceilings", type=Path, nargs="+", metavar="RUN.json", help="measured ceilings, instead")
    parser.add_argument("--l2", type=float, metavar="TB/s", help="in place of the lead, or of what was measured")
    parser.add_argument("--batch", type=int, default=8192, choices=sorted(BATCHES))
    sizes = {f"{out}x{inside}": (out, inside) for out, inside in SIZES}
    parser.add_argument("--size", choices=list(sizes), default="4096x4096")
    parser.add_argument("--traffic", action="store_true")
    parser.add_argument("--programs", action="store_true")
    parser.add_argument("--tile", metavar="MxNxK", help="in place of the tuned ones")
    parser.add_argument("--stages", type=int, default=3, help="of --tile (default: 3)")
    parser.add_argument("--warps", type=int, default=8, help="of --tile (default: 8)")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--steps", action="store_true", help="training steps of the nets, instead")
    parser.add_argument("--net", choices=[net.model for net in PREDICTED_NETS], help="the layers of this net, instead")
    options = parser.parse_args(arguments)
    machines, size = [MACHINES[name] for name in options.device], sizes[options.size]
    if options.ceilings:
        machines = [measured(path) for path in options.ceilings]
    if options.l2:
        machines = [replace(machine, l2=options.l2 * 1e12) for machine in machines]
    if options.steps:
        from benchmarks.gpu.predict_steps import steps_table

        print("\n".join(_ceilings(machine) for machine in machines), steps_table(machines, PREDICTED_NETS), sep="\n\n")
        return 0
    if options.net:
        from benchmarks.gpu.predict_nets import net_table

        net = next(net for net in PREDICTED_NETS if net.model == options.net)
        for machine in machines:
            print(f"{machine.name}; {net}\n\n{net_table(machine, net)}\n")
        return 0
    if options.search:
        from benchmarks.gpu.search import better

        print(better(machines[0], options.batch, size))
        return 0
    print(
        "\n".join(_ceilings(machine) for machine in machines), f"; W is {options.size}, N = {options.batch}\n", sep=""
    )
    tile = None
    if options.tile:
        tile = Config(*map(int, options.tile.split("x")), warps=options.warps, stages=options.stages)
    print(table(machines, options.batch, size, options.traffic, options.programs, tile))
    return 0


def _ceilings(machine: work.Machine) -> str:
    return (f"{machine.name}: {machine.flops[16] / 1e12:.0f} TFLOP/s bf16, {machine.memory / 1e12:.1f} TB/s memory, "
            f"{machine.l2 / 1e12:.1f} TB/s L2")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
