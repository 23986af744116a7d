# %% [markdown]
# # Sparsify and prune a transformer
#
# A small GPT learns the text of this library's own sources, byte by byte. Three ways to
# have a fraction of the weights in its MLPs: keep the strongest blocks at the start, prune
# while training, and fine-tune blocks beside frozen weights. On this page it trains for
# seconds, so losses are high: the figures of a longer training are
# [below](#what-a-longer-training-gives).

# %%
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

import efcn_sparse as es

CONTEXT, WIDTH, HEADS, DEPTH, BATCH, STEPS = 64, 128, 4, 2, 8, 27
sources = sorted(Path(es.__file__).parent.rglob("*.py"))
text = torch.tensor(list(b"".join(path.read_bytes() for path in sources)))
text, unseen = text[:-20_000], text[-20_000:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        q, k, v = (
            self.qkv(self.before_attention(x))
            .unflatten(-1, (3, HEADS, -1))
            .permute(2, 0, 3, 1, 4)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, text):
        return self.head(self.norm(self.blocks(self.bytes(text) + self.positions.weight)))


def loss_of(model, text, starts):
    window = text[starts[:, None] + torch.arange(CONTEXT + 1)]
    return nn.functional.cross_entropy(
        model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()
    )


def train(model, optimizer, after_step=lambda: None, steps=STEPS):
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(
            model, text, torch.randint(len(text) - CONTEXT, (BATCH,), generator=generator)
        )
        loss.backward()
        optimizer.step()
        after_step()
        losses.append(loss.item())
    return losses


def report(name, model):
    with torch.no_grad():
        loss = loss_of(
            model, unseen, torch.arange(0, len(unseen) - CONTEXT - 1, CONTEXT)[:128]
        ).item()
    mlps = sum(
        p.numel()
        for block in model.blocks
        for p in block.mlp.parameters()
        if p.requires_grad and p.dim() > 1
    )
    print(
        f"{name:>10}: {mlps:8,} MLP weights trained, {loss:.3f} nats per byte of unseen text"
    )


# %% [markdown]
# Before that, ask whether it pays: `es.advise(model, rows)` [times the layers on your
# machine](../pruning.md#does-it-pay-advise).
#
# ## Sparse from the start: `sparsify`
#
# The rules name layers by shell-style patterns, and what each keeps. Attention, embeddings
# and the head stay dense.

# %%
torch.manual_seed(0)
start = GPT()
losses = {}
dense = copy.deepcopy(start)
losses["dense"] = train(dense, torch.optim.AdamW(dense.parameters(), lr=2e-3))
report("dense", dense)

sparse = es.sparsify(
    copy.deepcopy(start), {"*.mlp.*": dict(density=0.25, block_shape=(16, 16))}
)
losses["sparsify"] = train(sparse, torch.optim.AdamW(sparse.parameters(), lr=2e-3))
report("sparsify", sparse)

# %% [markdown]
# ## Prune while training: `Pruner`
#
# The layers stay dense while blocks are set to zero, more and more of them as the schedule
# says: those with the smallest norms. After `finish()` the rest alone is stored, and the
# optimizer goes on with what it had.

# %%
pruned = copy.deepcopy(start)
optimizer = torch.optim.AdamW(pruned.parameters(), lr=2e-3)
schedule = es.CubicSchedule(begin=3, end=18, every=3)
rules = {"*.mlp.*": dict(density=0.25, block_shape=(16, 16))}
pruner = es.Pruner(pruned, rules, schedule, optimizer, finish_at_end=True)
losses["Pruner"] = train(pruned, optimizer, pruner.step)
report("Pruner", pruned)
print(es.sparsity(pruned.blocks))

# %%
figure, axes = plt.subplots()
for name, values in losses.items():
    axes.plot(values, label=name)
axes.set(xlabel="step", ylabel="training loss, nats per byte")
axes.legend()
plt.show()

# %%
figure, axes = plt.subplots(1, 2, figsize=(6, 2.5), sharey=True)
for axis, (name, model) in zip(
    axes, {"sparsify": sparse, "Pruner": pruned}.items(), strict=True
):
    axis.imshow(
        model.blocks[0].mlp[0].pattern.to_mask(),
        aspect="auto",
        cmap="Blues",
        interpolation="nearest",
    )
    axis.set(title=name, xlabel="inputs")
axes[0].set_ylabel("outputs")
plt.show()

# %% [markdown]
# ## Fine-tune blocks beside frozen weights: `SparseDelta`
#
# Where the dense weights must stay, a few blocks beside them can train, as LoRA's matrices
# do. They are placed where the gradient of some batches is largest, and `merge` adds them
# to the dense weights. The dense model from above learns another text, that of Python's
# module `random`.

# %%
import inspect
import random

other = torch.tensor(list(inspect.getsource(random).encode()))
starts = torch.arange(0, len(other) - CONTEXT - 1, CONTEXT)
rules = {"*.mlp.*": dict(density=0.05, block_shape=(16, 16))}
deltas = es.SparseDelta.add(
    dense, rules, lambda model, part: loss_of(model, other, part), starts.split(64)
)
for name, parameter in dense.named_parameters():
    parameter.requires_grad_(name.endswith("delta.values"))

before = loss_of(dense, other, starts[::4]).item()
optimizer = torch.optim.AdamW([p for p in dense.parameters() if p.requires_grad], lr=5e-3)
for step in range(12):
    optimizer.zero_grad()
    loss_of(dense, other, starts[step % 4 :: 4][:32]).backward()
    optimizer.step()
for delta in deltas.values():
    delta.merge()
after = loss_of(dense, other, starts[::4]).item()
trained = sum(p.numel() for p in dense.parameters() if p.requires_grad)
print(f"{trained:,} weights trained: from {before:.3f} to {after:.3f} nats per byte")
assert after < before

# %% [markdown]
# ## What a longer training gives
#
# Two blocks of width 256, 500 steps of 1,024 bytes, 90% of the MLPs' blocks of 16×16 pruned
# by magnitude during the first 60% of the steps; an AMD EPYC (Zen 5), one thread of two
# cores, fp32, torch 2.13, other work on the machine:
#
# | | dense | pruned | |
# |---|---|---|---|
# | MLP weights | 1,048,576 | 104,448 | |
# | loss on unseen text, nats per byte | 2.164 | 2.236 | 3.3% worse |
# | MLP 256 → 1024 → 256, blocks of 16, forward and backward, 1,024 tokens | 148 ms | 33 ms | 4.5 times faster |
# | the same, one token | 0.051 ms | 0.030 ms | 1.7 times faster |
# | MLP 768 → 3072 → 768, blocks of 64, forward and backward, 2,048 tokens | 2,030 ms | 243 ms | 8.3 times faster |
# | the same, one token | 1.10 ms | 0.175 ms | 6.3 times faster |
#
# Next: scores, budgets over layers, group lasso, checkpoints and DDP in [the
# guide](../pruning.md).
