# %% [markdown]
# # A block-sparse MLP
#
# Train a multilayer perceptron that stores a tenth of its weights, beside the dense one
# that it came from. The data are 1,797 handwritten digits of 8×8 pixels.

# %%
import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import efcn_sparse as es

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]

# %% [markdown]
# ## A layer
#
# `SparseLinear` stands where `nn.Linear` does. It cuts its weight matrix into blocks, here
# of 32×32, and stores some of them: the [density](../../DESIGN.md#density) says which
# share. Which ones is the layer's [pattern](../../DESIGN.md#pattern); without one of your
# own it is drawn at random.

# %%
layer = es.SparseLinear(1024, 1024, density=0.1, block_shape=(32, 32))
print(layer)
print("values:", tuple(layer.values.shape), "instead of", (1024, 1024))

# %% [markdown]
# `values` is the only copy of the weights, an ordinary parameter. So its gradient and the
# optimizer's state are as small as it is, and nothing dense is formed in training. The
# picture shows where blocks are stored.

# %%
plt.figure(figsize=(3, 3))
plt.imshow(layer.pattern.to_mask(), cmap="Blues", interpolation="nearest")
plt.xlabel("inputs")
plt.ylabel("outputs")
plt.show()

# %% [markdown]
# ## A model
#
# `sparsify` replaces the `nn.Linear` layers whose names match, and keeps the blocks with
# the largest norms. The first and the last layer are small, and stay dense.


# %%
def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 1024), nn.ReLU(),
        nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, 10),
    )  # fmt: skip


models = {
    "dense": mlp(),
    "10% of the blocks": es.sparsify(
        mlp(), {"[24]": dict(density=0.1, block_shape=(32, 32))}
    ),
}
print(es.sparsity(models["10% of the blocks"]))

# %% [markdown]
# ## Training
#
# The loop is the one that you have. Any optimizer of torch will do.


# %%
def fit(model, steps=40):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        batch = train[torch.randint(len(train), (128,), generator=generator)]
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (time.perf_counter() - start) / steps


figure, axes = plt.subplots()
for name, model in models.items():
    losses, seconds = fit(model)
    with torch.no_grad():
        accuracy = (model(x[test]).argmax(1) == y[test]).float().mean().item()
    weights = sum(p.numel() for p in model.parameters())
    print(
        f"{name:>18}: {weights:9,} numbers, {1000 * seconds:4.1f} ms a step, {accuracy:.1%} right"
    )
    axes.plot(losses, label=name)
axes.set(xlabel="step", ylabel="training loss", yscale="log")
axes.legend()
plt.show()

# %% [markdown]
# Times are of the machine that built this page, while it did other things too; [When it
# pays](../when.md) has careful ones.
#
# ## Which code runs
#
# `explain` says which backend multiplies, and why others do not.

# %%
print(es.explain(layer))

# %% [markdown]
# Next: [choose a block shape and a density](../howto/choose_blocks.md), or take a trained
# transformer [from dense to sparse](prune_transformer.py).
