"""What the work model says of the benchmark patterns, before anything is measured.

    python benchmarks/gpu/predict.py [--device h200] [--batch 8192] [--size 4096x4096] [--traffic] [--search]
    python benchmarks/gpu/predict.py --net resnet18

Runs anywhere. Schedules are made as on that GPU; times are the model's least times there, not measurements.
``--traffic`` also follows which tiles the schedule finds in the L2, and so what it moves through memory (a minute).
``--search`` lists, instead, tiles and super-rows that the model would prefer to those of the tuning table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.gpu.cases import BATCHES, GOALS, OPERATIONS, PREDICTED_NETS, SIZES, Product, grid
from efcn_sparse.ops.backends.triton import plan, work
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tuning import Config
from efcn_sparse.ops.structure import Structure
from efcn_sparse.pattern import BlockPattern

NAMES = {"forward": "spmm", "dx": "spmm_t", "dw": "sddmm"}
SM90 = Device("sm90", 132, 227 * 1024)
# bf16 and memory were measured on such GPUs; L2 is a lead
H100 = work.Machine("H100", work.H200.flops, l2=work.H200.l2, memory=3.0e12)
MACHINES = {"h200": work.H200, "h100": H100}


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


def problem_of(case: Product, pattern: BlockPattern, operation: str) -> plan.Problem:
    """The problem as an H100 or H200 meets it, in bf16."""
    structure = Structure.of(pattern.structure)
    return plan.Problem(NAMES[operation], structure, case.block, case.block, case.batch, torch.bfloat16, SM90)


def predict(
    case: Product,
    pattern: BlockPattern,
    operation: str,
    machine: work.Machine = work.H200,
    config: Config | None = None,
) -> Prediction:
    """The prediction for the tuned configuration, or for another one."""
    problem = problem_of(case, pattern, operation)
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


def table(machine: work.Machine, batch: int, size: tuple[int, int], with_traffic: bool) -> str:
    """Markdown, for the patterns of that size with that batch."""
    from benchmarks.gpu.traffic import hbm_bytes

    heads = ["block", "density", "operation", "tile", "rows joined", "useful GFLOP", "computed", "least MB"]
    heads += [*(["HBM MB"] if with_traffic else []), "L2 MB", "bound by", "least µs", "of dense, at most", "goal",
              "L2 TB/s for the goal"]  # fmt: skip
    lines = [heads, ["---"] * len(heads)]
    for case in grid([size], [batch]):
        pattern = make_pattern(case)
        for operation in OPERATIONS:
            p = predict(case, pattern, operation, machine)
            moved = [f"{hbm_bytes(p.problem, p.config) / 1e6:.0f}"] if with_traffic else []
            lines.append([
                str(case.block), f"{case.density:.0%}", operation, tile_of(p.config), str(p.config.members),
                f"{p.work.useful_flops / 1e9:.0f}", f"{p.work.flops / 1e9:.0f}", f"{p.work.memory_bytes / 1e6:.0f}",
                *moved, f"{p.work.l2_bytes / 1e6:.0f}", p.bound, f"{1e6 * p.seconds:.0f}", f"{p.fraction:.2f}",
                f"{GOALS[case.block]:.2f}", f"{p.l2_for_goal / 1e12:.1f}",
            ])  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tile_of(config: Config) -> str:
    """``M×N×K``."""
    return f"{config.block_m}×{config.block_n}×{config.block_k}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(MACHINES), default="h200")
    parser.add_argument("--batch", type=int, default=8192, choices=sorted(BATCHES))
    sizes = {f"{out}x{inside}": (out, inside) for out, inside in SIZES}
    parser.add_argument("--size", choices=list(sizes), default="4096x4096")
    parser.add_argument("--traffic", action="store_true")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--net", choices=[net.model for net in PREDICTED_NETS], help="the layers of this net, instead")
    options = parser.parse_args(arguments)
    machine, size = MACHINES[options.device], sizes[options.size]
    if options.net:
        from benchmarks.gpu.predict_nets import net_table

        net = next(net for net in PREDICTED_NETS if net.model == options.net)
        print(f"{machine.name}; {net}\n\n{net_table(machine, net)}")
        return 0
    if options.search:
        from benchmarks.gpu.search import better

        print(better(machine, options.batch, size))
        return 0
    print(f"{machine.name}: {machine.flops[16] / 1e12:.0f} TFLOP/s bf16, {machine.memory / 1e12:.1f} TB/s memory, "
          f"{machine.l2 / 1e12:.1f} TB/s L2; W is {options.size}, N = {options.batch}\n")  # fmt: skip
    print(table(machine, options.batch, size, options.traffic))
    return 0


if __name__ == "__main__":
    sys.exit(main())
