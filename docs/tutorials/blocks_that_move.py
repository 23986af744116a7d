# %% [markdown]
# # Blocks that move
#
# Which weights should a sparse layer store? `Growth` finds out while it trains: every few
# steps it drops the stored blocks with the smallest norms, and stores blocks where the
# gradient is large (RigL, with blocks). Nothing dense is formed for it.
#
# The task: an image passes through, and to each pixel a third of another pixel is added,
# which lies anywhere. No receptive field holds that other pixel.

# %%
import contextlib

import matplotlib.pyplot as plt
import torch
from torch import nn

import efcn_sparse as es

SIDE, CHANNELS, STEPS = 8, 4, 160
partners = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(7))


def batch(seed):
    x = torch.randn(
        (64, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)
    )
    return x, x + x.flatten(2)[:, :, partners].view_as(x) / 3


# %% [markdown]
# A convolution, embedded with four [supports](../../DESIGN.md#support). `Grown(3.0)` stores
# three times as many weights as `Local()`, and `Growth` chooses which. `record_leak` says
# what share of the squared gradient falls on weights that are not stored, and is ignored.


# %%
def learn(support):
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False))
    layers = {"*": dict(support=support, block_shape=(CHANNELS, CHANNELS))}
    net = es.embed(cnn, torch.zeros(1, CHANNELS, SIDE, SIDE), layers=layers)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    growth = (
        es.Growth(net, optimizer, every=20, until=STEPS)
        if isinstance(support, es.Grown)
        else None
    )
    losses = []
    for number in range(STEPS):
        x, target = batch(number)
        optimizer.zero_grad()
        with (
            growth.watch() if growth else contextlib.nullcontext(),
            es.record_leak(net) as leak,
        ):
            loss = (net(x) - target).square().mean()
            loss.backward()
        optimizer.step()
        if growth:
            growth.step()
        losses.append(loss.item())
    return net[0].linear, losses, leak.share


figure, axes = plt.subplots()
layers = {}
for name, support in {
    "local": es.Local(),
    "dilated": es.Dilated(2),
    "grown": es.Grown(3.0),
    "full": es.Full(),
}.items():
    layers[name], losses, ignored = learn(support)
    print(
        f"{name:<8} {layers[name].values.numel():7,} weights   loss {losses[-1]:.4f}   ignored {ignored:6.1%}"
    )
    axes.plot(losses, label=name)
axes.set(xlabel="step", ylabel="mean squared error", yscale="log")
axes.legend()
plt.show()

# %% [markdown]
# `Grown` learns with a fraction of the weights of `Full()`. It has found the partners: dots
# are where a pixel's partner is, blue the blocks that are stored.

# %%
stored = layers["grown"].pattern.to_mask()[::CHANNELS, ::CHANNELS]
found = stored[torch.arange(SIDE * SIDE), partners]
plt.figure(figsize=(4, 4))
plt.imshow(stored, cmap="Blues", vmax=2)
plt.scatter(partners, range(SIDE * SIDE), s=4, color="crimson")
plt.xlabel("input pixel")
plt.ylabel("output pixel")
plt.show()
print(f"partners stored: {found.float().mean():.0%}")
assert found.float().mean() > 0.9

# %% [markdown]
# `SparseLinear` layers that come from no CNN move blocks with `es.regrow`; see the
# [reference](../reference/layers.md).
