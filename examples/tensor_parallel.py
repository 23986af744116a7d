"""An embedded CNN whose weights are divided among processes: each holds, multiplies and trains a run of the blocks.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py --steps 20

Runs on CPUs over gloo, or where there are as many GPUs as processes, over NCCL (not tried yet). Prints what each
process holds, and the loss beside that of the same training in one process. Without torchrun one process holds all.
"""

import argparse
import copy
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

import efcn_sparse as es

BATCH, CLASSES, SIZE = 32, 10, 16


def start() -> DeviceMesh:
    """All processes in a row. torchrun tells each its rank; alone, a process is rank 0 of 1."""
    device = "cuda" if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "nccl" if device == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh(device, (dist.get_world_size(),))


def net(device: str) -> nn.Module:
    """An eFCN with off-local weights within one unit of the receptive fields; built alike on every process."""
    torch.manual_seed(0)
    cnn = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(32 * (SIZE // 2) ** 2, CLASSES),
    )  # fmt: skip
    return es.embed(cnn, torch.zeros(1, 3, SIZE, SIZE), support=es.Dilated(1)).to(device)


def batch(device: str) -> tuple[Tensor, Tensor]:
    """Noise with random labels, the same on every process: the weights are divided, not the batch."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    return x.to(device), torch.randint(CLASSES, (BATCH,), generator=generator).to(device)


def train(model: nn.Module, steps: int, device: str) -> list[float]:
    """The loss at each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, labels = batch(device)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module, *, here: bool) -> int:
    """How many weights the sparse layers have, altogether or in this process."""
    values = [layer.values for layer in model.modules() if isinstance(layer, es.SparseLinear)]
    return sum((v.to_local() if here and isinstance(v, DTensor) else v).numel() for v in values)


def main() -> None:
    """One training divided among the processes, and one in rank 0 alone."""
    parser = argparse.ArgumentParser(description="Tensor parallelism by blocks.")
    parser.add_argument("--steps", type=int, default=20, help="steps of AdamW")
    parser.add_argument("--save", metavar="FILE", help="write the trained state dict, which any one process can load")
    arguments = parser.parse_args()

    mesh = start()
    device = mesh.device_type
    model = net(device)
    alone = copy.deepcopy(model) if mesh.get_rank() == 0 else None
    model = parallelize_module(model, mesh, es.distributed.BlockRowParallel())  # the optimizer is made afterwards

    held: list[int] = [0] * mesh.size()
    dist.all_gather_object(held, weights(model, here=True))
    losses = train(model, arguments.steps, device)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if alone is not None:  # rank 0
        print(f"sparse weights: {weights(model, here=False):,}, by process: " + ", ".join(f"{n:,}" for n in held))
        expected = train(alone, arguments.steps, device)
        apart = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        print(f"loss: {losses[0]:.4f} -> {losses[-1]:.4f}, from that of one process at most {apart:.1e} apart")
        alone.load_state_dict(state)
        print("the state dict of all processes loads into one")
        if arguments.save:
            torch.save(state, arguments.save)
    dist.barrier()  # a process that ends just after a collective may abort: gloo's threads still hold its tensors
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
