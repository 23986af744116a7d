# %% [markdown]
# # Locally connected layers
#
# A locally connected layer sees the same windows as a convolution, and has a kernel of its
# own at each position. Faces, spectra and maps of the sky have structure that depends on
# the place; so has the task below, and a convolution fails at it.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import efcn_sparse as es

# %% [markdown]
# ## The task
#
# A camera whose optics blur differently at each pixel, more to the right: each pixel is a
# mean over its 5×5 window with weights of its own. The network is to learn the blur from
# pairs of images.

# %%
SIDE, WINDOW = 12, 5
offsets = torch.arange(WINDOW) - WINDOW // 2
widths = torch.linspace(0.4, 2.0, SIDE)
kernels = torch.exp(
    -(offsets[:, None] ** 2 + offsets**2) / (2 * widths[:, None, None] ** 2)
)
kernels = (kernels / kernels.sum((1, 2), keepdim=True))[:, None, None].expand(
    SIDE, SIDE, 1, 1, WINDOW, WINDOW
)

optics = es.LocallyConnected2d(1, 1, (SIDE, SIDE), WINDOW, padding="same", bias=False)
optics.load_weight(kernels.contiguous())
optics.requires_grad_(False)


def pairs(seed):
    sharp = torch.randn(64, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return sharp, optics(sharp)


# %% [markdown]
# ## Two networks
#
# The arguments are those of `nn.Conv2d`, and the size of the input: the number of kernels
# depends on it.

# %%
networks = {
    "nn.Conv2d": nn.Conv2d(1, 1, WINDOW, padding="same", bias=False),
    "LocallyConnected2d": es.LocallyConnected2d(
        1, 1, (SIDE, SIDE), WINDOW, padding="same", bias=False
    ),
}
figure, axes = plt.subplots()
for name, network in networks.items():
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=0.02), []
    for number in range(200):
        sharp, blurred = pairs(number)
        loss = (network(sharp) - blurred).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(
        f"{name:>18}: {sum(p.numel() for p in network.parameters()):6,} numbers stored, loss {losses[-1]:.1e}"
    )
    axes.plot(losses, label=name)
axes.set(xlabel="step", ylabel="mean squared error", yscale="log")
axes.legend()
plt.show()
assert losses[-1] < 1e-4  # of the locally connected one

# %% [markdown]
# `weight` is a copy of the kernels to look at, `[*output_size, out, in, *kernel]`: here
# those of the middle row. Weights that would meet the padding do not exist, and are zero in
# the copy.

# %%
learned = networks["LocallyConnected2d"].weight.detach()
figure, axes = plt.subplots(2, 6, figsize=(6, 2.2))
for column, place in enumerate(range(0, SIDE, 2)):
    for row, kernel in (
        (0, learned[SIDE // 2, place, 0, 0]),
        (1, kernels[SIDE // 2, place, 0, 0]),
    ):
        axes[row, column].imshow(kernel, vmin=0, vmax=0.4, cmap="Greys")
        axes[row, column].set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("learned")
axes[1, 0].set_ylabel("true")
plt.show()

# %% [markdown]
# ## From a convolution
#
# `from_conv` starts with the same kernel everywhere, and computes the same as the
# convolution; `deviation(layer).untied` says how far the kernels have gone apart since.

# %%
layer = es.LocallyConnected2d.from_conv(networks["nn.Conv2d"], (SIDE, SIDE))
x, target = pairs(0)
assert torch.allclose(layer(x), networks["nn.Conv2d"](x), atol=1e-5)
print(f"untied before: {es.deviation(layer).untied:.4f}")
optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
(layer(x) - target).square().mean().backward()
optimizer.step()
print(f"untied after a step: {es.deviation(layer).untied:.4f}")

# %% [markdown]
# Next: [the guide](../locally_connected.md) has padding, memory, and weights from Flax and
# Keras.
