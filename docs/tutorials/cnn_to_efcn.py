# %% [markdown]
# # A CNN becomes fully connected
#
# A convolution is a fully-connected layer whose matrix is sparse, because an output sees a
# small window, and whose entries are tied, because every window uses the same kernel.
# Copied into that matrix, a CNN becomes its *embedded fully-connected network*
# ([eFCN](../../DESIGN.md#elcn)): it computes the same, and is free to become something else
# as it trains. Here a CNN learns handwritten digits, is embedded, and leaves.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import efcn_sparse as es

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]


def step(model, optimizer, generator):
    batch = train[torch.randint(len(train), (100,), generator=generator)]
    loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def accuracy(model):
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


# %% [markdown]
# ## The CNN

# %%
torch.manual_seed(0)
cnn = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
)  # fmt: skip
optimizer, generator = (
    torch.optim.SGD(cnn.parameters(), lr=0.1),
    torch.Generator().manual_seed(1),
)
for _ in range(200):
    step(cnn, optimizer, generator)
print(f"CNN: {accuracy(cnn):.1%} right")

# %% [markdown]
# ## The embedding
#
# `embed` replaces each convolution of a copy by a block-sparse layer with the same values.
# An example input tells it the sizes. The [support](../../DESIGN.md#support) says which
# weights may be non-zero: `Local()` those inside the CNN's windows, `Dilated(1)` also those
# up to one pixel around them, `Full()` all.

# %%
efcn = es.embed(cnn, images[:2], support=es.Dilated(1))
assert torch.allclose(efcn(images[test]), cnn(images[test]), atol=1e-5)
print(
    f"eFCN: {accuracy(efcn):.1%} right, {sum(p.numel() for p in efcn.parameters()):,} weights"
)
print(
    f" CNN: {accuracy(cnn):.1%} right, {sum(p.numel() for p in cnn.parameters()):,} weights"
)

# %% [markdown]
# This is the matrix of the second convolution, 32·16 outputs by 16·16 inputs, zeros in
# white. Units are ordered by pixel, channels within; so each pair of pixels is one block,
# and the bands are the windows.

# %%
plt.figure(figsize=(4, 5))
plt.imshow(
    efcn[3].linear.weight.detach(),
    cmap="RdBu",
    vmin=-0.3,
    vmax=0.3,
    interpolation="nearest",
)
plt.xlabel("inputs: 4×4 pixels of 16 channels")
plt.ylabel("outputs: 4×4 pixels of 32 channels")
plt.show()

# %% [markdown]
# ## Leaving
#
# Weights inside the windows are [local](../../DESIGN.md#local), the others *off-local*. Of
# the local ones, what all windows have in common is the [tied](../../DESIGN.md#tied) part,
# the rest the *untied* part. The three are orthogonal, and `deviation` gives their norms.
# [δ](../../DESIGN.md#delta) is the share ‖off-local‖ / ‖W‖, which no CNN could have.

# %%
optimizer, found = torch.optim.SGD(efcn.parameters(), lr=0.1), []
for _ in range(200):
    step(efcn, optimizer, generator)
    found.append(es.deviation(efcn))
figure, axes = plt.subplots()
axes.plot([part.untied / part.tied for part in found], label="untied / tied")
axes.plot([part.delta for part in found], label="δ")
axes.set(xlabel="step after the embedding", ylim=(0, None))
axes.legend()
plt.show()
print(f"eFCN: {accuracy(efcn):.1%} right, δ = {found[-1].delta:.4f}")

# %% [markdown]
# ## Back
#
# `unembed` gives the nearest CNN, `project(efcn, onto="cnn")` does the same in place, and
# `onto="lcn"` only removes what is off-local.

# %%
print(f"the nearest CNN: {accuracy(es.unembed(efcn)):.1%} right")

# %% [markdown]
# Next: the whole experiment, with controls and a report, on [your own
# net](relax_your_net.py), or with a preset: [the relax protocol](../relax.md).
