"""What the work model says of the layers of a local eFCN."""

from __future__ import annotations

import torch

from benchmarks.gpu.cases import OPERATIONS, Net
from benchmarks.gpu.nets import distinct_layers
from benchmarks.gpu.predict import NAMES, SM90
from efcn_sparse.ops.backends.triton import plan, work


def net_table(machine: work.Machine, net: Net) -> str:
    """Markdown: for each kind of layer the rows that are joined, and the time of each operation as a fraction of
    min(memory, MMA), which is what ``run.py`` measures too.
    """
    heads = ["layer", "of its kind", "block", "useful GFLOP", "least MB"]
    for name in ("forward", "dX", "dW"):
        heads += [f"{name}: rows joined", "bound by", "µs", "of the roof, at most"]
    lines = [heads, ["---"] * len(heads)]
    total = 0.0
    for layer, count in distinct_layers(net):
        pattern, cells = layer.pattern, []
        for operation in OPERATIONS:
            problem = plan.Problem.of(NAMES[operation], pattern, net.batch, torch.bfloat16, SM90)
            config = plan.configure(problem)
            entries = plan.super_rows(problem, config.members).cols.numel()
            count_work = work.sddmm_work if operation == "dw" else work.spmm_work
            done = count_work(problem.sizes(), entries, config)
            seconds = done.seconds(machine, 16)
            least = max(done.useful_flops / machine.flops[16], done.memory_bytes / machine.memory)
            cells += [str(config.members), done.bound(machine, 16), f"{1e6 * seconds:.0f}", f"{least / seconds:.2f}"]
            total += count * seconds
        title = [layer.name, str(count), "×".join(map(str, layer.block_shape))]
        lines.append([*title, f"{done.useful_flops / 1e9:.1f}", f"{done.memory_bytes / 1e6:.0f}", *cells])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{body}\n\nAll layers, forward, dX and dW: {1e3 * total:.2f} ms at the least."
