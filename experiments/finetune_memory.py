"""Peak memory of fine-tuning steps: all weights, LoRA, and sparse deltas of as many weights.

    python -m experiments.finetune_memory

A stack of six transformer MLPs (768 → 3072 → 768, fp32), AdamW. LoRA is two matrices of rank 32 beside each frozen
layer, written by hand as PEFT computes it; the deltas are 120 blocks of 32×32 beside each. Every way runs in a process
of its own, in which freed memory goes back to the system at once.
"""

import argparse
import contextlib
import os
import subprocess
import sys

import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.measure.memory import peak_bytes, reset_peak

WIDTH, DEPTH, RANK, BLOCK, BLOCKS = 768, 6, 32, 32, 120
WAYS = {
    "full": "all weights",
    "lora": f"LoRA, rank {RANK}",
    "delta": f"SparseDelta, {BLOCKS} blocks of {BLOCK}×{BLOCK}",
    "fused": "the same, FusedOptimizer",
}


class LoRA(nn.Module):
    """``linear(x) + B (A x)``, the linear layer frozen."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


class Stack(nn.Module):
    """MLPs with residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(DEPTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            x = x + mlp(x)
        return x


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Something with a gradient at every output."""
    return model(x).square().mean()


def measure(way: str, tokens: int) -> tuple[int, int]:
    """Peak bytes of two training steps over the process without a model; and how many weights train."""
    torch.manual_seed(0)
    nn.Linear(64, 64)(torch.randn(8, 64)).sum().backward()  # libraries load with the first call
    x = torch.randn(tokens, WIDTH)
    reset_peak()
    before = peak_bytes()
    model = Stack()
    if way == "lora":
        model.requires_grad_(False)
        for mlp in model.mlps:
            mlp[1], mlp[3] = LoRA(mlp[1]), LoRA(mlp[3])
    elif way in ("delta", "fused"):
        density = BLOCKS / (4 * WIDTH**2 // BLOCK**2)
        es.SparseDelta.add(model, {"*": dict(density=density, block_shape=(BLOCK, BLOCK))}, loss_of, [x[:64]])
    trainable = [p for p in model.parameters() if p.requires_grad]

    def adamw(parameters):
        return torch.optim.AdamW(parameters, lr=1e-4)

    optimizer = es.FusedOptimizer(model, adamw) if way == "fused" else adamw(trainable)
    reset_peak()
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_of(model, x)
        with optimizer.updating() if way == "fused" else contextlib.nullcontext():
            loss.backward()
        optimizer.step()
        del loss
    return peak_bytes() - before, sum(p.numel() for p in trainable if p.dim() > 1)


def main() -> None:
    """A row for each way."""
    parser = argparse.ArgumentParser(description="Memory of fine-tuning: all weights, LoRA, sparse deltas.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.way:
        print(*measure(arguments.way, arguments.tokens[0]))
        return
    heads = ["what trains", "weights", *(f"{tokens:,} tokens" for tokens in arguments.tokens)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for way, title in WAYS.items():
        cells = []
        for tokens in arguments.tokens:
            command = [sys.executable, "-m", "experiments.finetune_memory", "--way", way, "--tokens", str(tokens)]
            options = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
            peak, weights = map(
                int, subprocess.run(command, check=True, stdout=subprocess.PIPE, env=options).stdout.split()
            )
            cells.append(f"{peak / 2**20:.0f} MiB")
        print(f"| {title} | {weights:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
