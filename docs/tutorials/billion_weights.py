# %% [markdown]
# # A billion weights on a laptop
#
# ResNet-18 on images of 192×192 pixels, embedded as a locally connected network, has
# 1,218,452,224 weights; as dense matrices it would have 2·10¹¹. A training step of four
# images took 0.7 to 0.9 s and 4.9 GiB on two cores of an AMD EPYC (Zen 5): [figures and
# method](../scale.md). This page does the same with images of 16×16 pixels. ResNet-50 at
# 224 pixels, 3.9 billion weights, trains in 7.7 GiB in bf16.

# %%
import time

import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.models import resnet18

# %% [markdown]
# ## Before: what will it take?
#
# `predict_step` runs the model on the meta device, where tensors have shapes and no memory.
# So it can be asked for any size, and builds nothing.


# %%
def predict(pixels, batch, **options):
    with torch.device("meta"):
        return es.planning.predict_step(
            resnet18(), torch.empty(batch, 3, pixels, pixels), **options
        )


print(f"{'pixels':>6} {'weights':>15} {'peak, plain SGD':>18} {'peak, inside':>14}")
for pixels in (16, 192):
    plain, inside = predict(pixels, 4), predict(pixels, 4, optimizer="sgd-inside")
    print(
        f"{pixels:>6} {plain.weights // 4:>15,} {plain.peak / 2**30:>14.2f} GiB {inside.peak / 2**30:>10.2f} GiB"
    )

# %% [markdown]
# As many numbers as weights is what a gradient takes, and Adam two more. With a billion
# weights that decides whether it runs. So don't hold a gradient: `FusedOptimizer` applies
# the update while the backward pass computes it, and with `inside=True` the product that
# would form the gradient of the weights subtracts it from them instead.
#
# ## Train

# %%
torch.manual_seed(0)
PIXELS, BATCH = 16, 4
images, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(1000, (BATCH,))
efcn = es.embed(resnet18(), images[:2])
optimizer = es.FusedOptimizer(
    efcn, lambda parameters: torch.optim.SGD(parameters, lr=0.01), inside=True
)
print(f"{sum(p.numel() for p in efcn.parameters()):,} weights")

for step in range(4):
    start = time.perf_counter()
    loss = nn.functional.cross_entropy(efcn(images), labels)
    with optimizer.updating():
        loss.backward()  # the weights of sparse layers change here
    optimizer.step()  # all others here
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - start:.2f} s")

values = [layer.values for layer in efcn.modules() if isinstance(layer, es.SparseLinear)]
assert all(value.grad is None for value in values)

# %% [markdown]
# ## With 192 pixels
#
# The same program with `PIXELS = 192` needs 6 GiB of memory. So that glibc gives freed
# memory back, start it with
#
# ```sh
# MALLOC_MMAP_THRESHOLD_=131072 python program.py
# ```
#
# | images of 192×192 pixels, batch 4 | |
# | --- | --- |
# | numbers stored | 1,230,472,192 (4.58 GiB, fp32) |
# | peak while embedding | 4.79 GiB |
# | peak of the steps | 4.87 GiB |
# | embedding, with its own check | 3.5 s |
# | steps (forward, backward, update) | 0.92 s, 0.89 s, 0.74 s |
#
# ## Keep it
#
# `save_sharded` writes tensor by tensor into files of bounded size, so that memory does not
# grow; `load_sharded` reads into the storage that is there.

# %%
import tempfile

with tempfile.TemporaryDirectory() as folder:
    es.checkpoint.save_sharded(efcn, folder)
    before = [value.detach().clone() for value in values]
    torch._foreach_zero_([value.data for value in values])
    es.checkpoint.load_sharded(efcn, folder)
assert all(torch.equal(value, old) for value, old in zip(values, before, strict=True))

# %% [markdown]
# For a model of your own, ask first: `efcn-sparse doctor package.module:function --input
# 3,224,224 --batch 32 --budget 24GiB` prints what each layer stores and which supports fit;
# see [Plan a training step](../howto/plan.md).
