# %% [markdown]
# # On a GPU
#
# The layers run on GPUs through Triton, with the same code. **This backend is tested under
# Triton's interpreter and has not run on hardware yet**, so there is no measured speed:
# [what is known](../gpu.md). The cells below run where a GPU is; where this page was built
# there is none, and they say so.

# %%
import torch
from torch import nn

import efcn_sparse as es

device = "cuda" if torch.cuda.is_available() else None
print(
    torch.cuda.get_device_name() if device else "no GPU here: the cells below are skipped"
)

# %% [markdown]
# ## Move the model
#
# `.to("cuda")` takes values and patterns along. Blocks of 64×64 or 128×128 suit tensor
# cores; compute capability 8.0 or more (A100, RTX 30, H100 and newer) and Triton 3.6 are
# needed.

# %%
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512))
model = es.sparsify(model, {"[02]": dict(density=0.25, block_shape=(64, 64))})
if device:
    model = model.to(device)
    print(es.explain(model[0]))

# %% [markdown]
# ## Train in bf16
#
# Weights stay in fp32 and products are in bf16, with sums in fp32. For products in fp32 on
# tensor cores, call `torch.set_float32_matmul_precision("high")`: by default none are used,
# as torch does.

# %%
if device:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        x = torch.randn(1024, 512, device=device)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = (model(x) - x).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.4f}")

# %% [markdown]
# The first call with a pattern plans it and compiles kernels, which takes seconds. Later
# ones only launch, so that a step can be captured in a CUDA graph.
#
# ## Compare with the dense layer
#
# Correct first: in fp32 the result is that of the dense matrix, to rounding.

# %%
if device:
    layer, x = model[0], torch.randn(256, 512, device=device)
    expected = (x.double() @ layer.weight.double().T + layer.bias.double()).float()
    print("largest difference:", (layer(x) - expected).abs().max().item())

    dense = nn.Linear(512, 2048, device=device)
    for name, call in {"dense": dense, "block-sparse": layer}.items():
        for _ in range(10):
            call(x)
        start, end = (
            torch.cuda.Event(enable_timing=True),
            torch.cuda.Event(enable_timing=True),
        )
        start.record()
        for _ in range(100):
            call(x)
        end.record()
        torch.cuda.synchronize()
        print(f"{name:>12}: {start.elapsed_time(end) / 100:.4f} ms")

# %% [markdown]
# ## Without a GPU
#
# Triton can interpret the same kernels on CPU tensors, slowly. That is how they are tested:
#
# ```sh
# TRITON_INTERPRET=1 python -c "
# import torch, efcn_sparse as es
# layer = es.SparseLinear(64, 64, density=0.5, block_shape=(16, 16))
# print(es.spmm(torch.randn(4, 64), layer.values, layer.pattern, backend='triton').shape)"
# ```
#
# `python -m benchmarks.gpu.run` measures a GPU in seven minutes; a page of results from
# yours [is welcome](../gpu.md#measure).
