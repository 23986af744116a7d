"""A small GPT whose MLPs lose 90% of their blocks while it trains, on the text of this library's own sources.

    python -m experiments.prune_transformer --large

Trains the net dense, and again with `es.Pruner`, for as many steps on the same batches. Prints both losses on text that
neither has seen, and how much faster the pruned MLP is; with `--large` also for an MLP of GPT-2's size.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import efcn_sparse as es

CONTEXT, WIDTH, HEADS, DEPTH, BATCH = 128, 256, 4, 2, 8


class Block(nn.Module):
    """Causal attention and an MLP, each with its residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = mlp(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    """Bytes ``[batch, CONTEXT]`` to logits of the next one ``[batch, CONTEXT, 256]``."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.bytes(text) + self.positions.weight)))


def mlp(width: int) -> nn.Sequential:
    """The MLP of a transformer."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def loss_of(model: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
    """The mean cross-entropy in nats per byte, of the windows that begin at ``starts``."""
    window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return nn.functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())


def train(model: GPT, text: Tensor, steps: int, density: float | None) -> None:
    """AdamW with a rate that falls to zero; with a density, the MLPs are pruned during the first 60% of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps + 1, pct_start=0.1)
    pruner = None
    if density is not None:
        schedule = es.CubicSchedule(begin=steps // 10, end=max(1, 6 * steps // 10), every=max(1, steps // 50))
        rules = {"blocks.*.mlp.*": dict(density=density, block_shape=(16, 16))}
        pruner = es.Pruner(model, rules, schedule, optimizer, finish_at_end=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, text, torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if pruner is not None:
            pruner.step()
        rate.step()


@torch.no_grad()
def evaluate(model: GPT, text: Tensor) -> float:
    """The loss on windows that cover ``text`` evenly."""
    starts = torch.arange(0, len(text) - CONTEXT, CONTEXT)
    return statistics.fmean(loss_of(model, text, part).item() for part in starts.split(64) if len(part) == 64)


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """The median time of each call; they take turns, after a call each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(own) for name, own in times.items()}


def compare(title: str, dense: nn.Sequential, sparse: nn.Sequential, tokens: int) -> None:
    """Print the times of a training step, and of inference with one token."""
    width = dense[0].in_features
    x, dy, one = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width), torch.randn(1, width)
    both = {"dense": dense, "sparse": sparse}
    step = milliseconds({name: lambda net=net: net(x).backward(dy) for name, net in both.items()})
    with torch.inference_mode():
        single = milliseconds({name: lambda net=net: net(one) for name, net in both.items()}, rounds=200)
    for what, times in ((f"forward and backward, {tokens} tokens", step), ("one token", single)):
        ratio = times["dense"] / times["sparse"]
        print(f"{title}, {what}: dense {times['dense']:.3g} ms, sparse {times['sparse']:.3g} ms, {ratio:.1f}x")


def main() -> None:
    """Train the dense and the pruned net."""
    parser = argparse.ArgumentParser(description="A transformer whose MLPs are pruned while it trains.")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--density", type=float, default=0.1, help="share of the MLPs' blocks that stays")
    parser.add_argument("--large", action="store_true", help="also time an MLP 768 -> 3072 -> 768, blocks of 64")
    arguments = parser.parse_args()

    sources = sorted(Path(es.__file__).parent.rglob("*.py"))
    text = torch.tensor(list(b"".join(path.read_bytes() for path in sources)))
    text, unseen = text[: -len(text) // 10], text[-len(text) // 10 :]
    unseen = unseen[: min(8, max(2, arguments.steps // 3)) * 64 * CONTEXT]  # less where it is only tried out

    torch.manual_seed(0)
    dense = GPT()
    pruned = copy.deepcopy(dense)
    print(f"{len(text):,} bytes to train on, {arguments.steps} steps, torch on {torch.get_num_threads()} thread(s)")
    for name, model, density in (("dense", dense, None), ("pruned", pruned, arguments.density)):
        train(model, text, arguments.steps, density)
        weights = sum(p.numel() for block in model.blocks for p in block.mlp.parameters() if p.dim() > 1)
        print(f"{name:>6}: {weights:9,} MLP weights, loss {evaluate(model, unseen):.4f} nats per byte")
    compare(f"MLP {WIDTH} -> {4 * WIDTH} -> {WIDTH}", dense.blocks[0].mlp, pruned.blocks[0].mlp, BATCH * CONTEXT)
    if arguments.large:
        large = mlp(768)
        small = es.sparsify(copy.deepcopy(large), {"[02]": dict(density=arguments.density, block_shape=(64, 64))})
        compare("MLP 768 -> 3072 -> 768", large, small, 2048)


if __name__ == "__main__":
    main()
