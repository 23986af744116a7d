# %% [markdown]
# # Several processes
#
# Sparse layers hold plain parameters, so PyTorch's tools for many processes apply. This
# page is a program that trains one model in three ways: in one process; with DDP, where
# each process sees a part of the batch; and with the *blocks* divided, where each process
# holds a part of the weights. Start it with
#
# ```sh
# torchrun --nproc-per-node 2 several_processes.py
# ```
#
# Without torchrun, as in the cells below, one process is all there is. The last cell starts
# two.

# %%
import copy
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import efcn_sparse as es

if "RANK" in os.environ:
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, world = dist.get_rank(), dist.get_world_size()

# %% [markdown]
# ## One model, alike everywhere
#
# Parameters can be sent around, and DDP does so; [patterns](../../DESIGN.md#pattern), that
# is which blocks are stored, cannot. Every process must build the same ones. A seed is
# enough for that, and `check_same_patterns` raises on every process if it was not.

# %%
torch.manual_seed(0)
dense = nn.Sequential(
    nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
)
model = es.sparsify(dense, {"[02]": dict(density=0.25, block_shape=(16, 16))})
es.distributed.check_same_patterns(model)

x, labels = torch.randn(32, 64), torch.randint(10, (32,))


def fit(model, x, labels):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def show(what, losses):
    if rank == 0:
        print(f"{what:>15}:", *(f"{loss:.4f}" for loss in losses[::3].tolist()))


alone = fit(copy.deepcopy(model), x, labels)
show("one process", alone)

# %% [markdown]
# ## DDP: a part of the batch each
#
# Gradients are averaged, so that the weights stay alike. The loss of the whole batch is the
# mean of the parts' losses.

# %%
ddp = fit(
    DistributedDataParallel(copy.deepcopy(model)), x[rank::world], labels[rank::world]
)
dist.all_reduce(ddp)
show("DDP", ddp / world)
assert torch.allclose(ddp / world, alone, atol=1e-4)

# %% [markdown]
# ## A part of the blocks each
#
# `BlockRowParallel` makes the values of each sparse layer a `DTensor`, of which a process
# holds, multiplies and trains a run of blocks; their results are summed. Every process sees
# the whole batch. Make the optimizer afterwards, since `values` is a new parameter.

# %%
mesh = init_device_mesh("cpu", (world,))
divided = parallelize_module(copy.deepcopy(model), mesh, es.distributed.BlockRowParallel())
losses = fit(divided, x, labels)
show("blocks divided", losses)
assert torch.allclose(losses, alone, atol=1e-4)

held = torch.tensor([divided[i].values.to_local().numel() for i in (0, 2)]).sum()
every = [torch.zeros_like(held) for _ in range(world)]
dist.all_gather(every, held)
if rank == 0:
    print("weights by process:", *(int(n) for n in every))
assert sum(every) == model[0].values.numel() + model[2].values.numel()

# %% [markdown]
# ## Save
#
# A full state dict of the divided model is an ordinary one, which one process can load.

# %%
whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
state = get_model_state_dict(
    divided, options=whole
)  # every process calls it; rank 0 gets all
if rank == 0:
    print(model.load_state_dict(state))
dist.barrier()  # over gloo: nobody leaves while another still reads
dist.destroy_process_group()

# %% [markdown]
# ## With two processes

# %%
if "RANK" not in os.environ:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    program = "docs/tutorials/several_processes.py"
    done = subprocess.run(
        [*torchrun, program], env=environment, capture_output=True, text=True, timeout=200
    )
    print(done.stdout if done.returncode == 0 else done.stderr)
    assert done.returncode == 0
else:
    sys.stdout.flush()
    os._exit(0)  # Python's own end can meet a thread of gloo's that still runs, and abort

# %% [markdown]
# What works and what does not, FSDP2, blocks that move, clipping and checkpoints: [Many
# processes](../distributed.md).
