"""What each of two gloo processes does; results go into files, which the tests read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import efcn_sparse as es

WORLD, BATCH, STEPS = 2, 8, 4
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
}
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def net(seed: int = 0) -> nn.Sequential:
    """An embedded CNN with masked blocks and a sparse head with an odd number of blocks."""
    torch.manual_seed(seed)
    cnn = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(32, 5)
    )
    efcn = es.embed(cnn, torch.zeros(1, 3, 6, 6), support=es.Dilated(1))
    head = es.BlockPattern.random((5, 32), (2, 4), 0.55, torch.Generator().manual_seed(7))
    efcn[4] = es.SparseLinear(32, 5, head)
    return efcn


def sharded(model: nn.Module, mesh: dist.DeviceMesh) -> nn.Module:
    for module in model.modules():
        if isinstance(module, es.SparseLinear):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, world: int = 1) -> None:
    """Steps on this process's share of each batch; gradients are clipped, so that their norm matters too."""
    for x, y in _batches():
        share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[share]), y[share]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()


def _batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        yield torch.randn(BATCH, 3, 6, 6, generator=generator), torch.randint(5, (BATCH,), generator=generator)


def work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        from tests.distributed import block_rows, patterns, pruning

        results = {
            **_data_parallel(rank),
            **_fully_sharded(rank, Path(folder)),
            **block_rows.work(rank, Path(folder)),
            **patterns.work(rank),
            **pruning.work(rank),
        }
        torch.save(results, Path(folder) / f"rank{rank}.pt")
        dist.barrier()  # a process that ends just after a collective may abort: gloo's threads still hold its tensors
    finally:
        dist.destroy_process_group()


def _data_parallel(rank: int) -> dict:
    model = DistributedDataParallel(net(seed=rank))  # rank 0's numbers win
    train(model, OPTIMIZERS["sgd"](model.parameters()), rank, WORLD)
    fused = net()
    es.FusedOptimizer(fused, OPTIMIZERS["sgd"])
    return {
        "ddp": model.module.state_dict(),
        "ddp fused": refusal(lambda: DistributedDataParallel(fused)(torch.zeros(1, 3, 6, 6))),
    }


def _fully_sharded(rank: int, folder: Path) -> dict:
    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    model = sharded(net(), mesh)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, rank, WORLD)
    results = {
        "shards": {name: tuple(p.to_local().shape) for name, p in model.named_parameters()},
        "placements": {str(p.placements) for p in model.parameters()},
        "fsdp": get_model_state_dict(model, options=FULL),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FULL),
        "fsdp fused": refusal(lambda: es.FusedOptimizer(model, OPTIMIZERS["sgd"])),
    }
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "checkpoint")

    other = net(seed=5).state_dict()
    set_model_state_dict(model, dict(other), options=FULL)
    results["loaded full"] = get_model_state_dict(model, options=FULL)
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_model_state_dict(model, state["model"])
    results["loaded checkpoint"] = get_model_state_dict(model, options=FULL)
    from_first = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, dict(other) if rank == 0 else {}, options=from_first)
    results["broadcast"] = get_model_state_dict(model, options=FULL)

    nothing = es.SparseLinear(4, 4, es.BlockPattern.random((4, 4), (2, 2), 0.0))
    alone = fully_shard(nn.Sequential(nothing, nn.Linear(4, 4)), mesh=mesh)
    results["empty pattern"] = refusal(lambda: alone(torch.zeros(1, 4)))
    wrong = dict(other)
    wrong["4.col_indices"] = wrong["4.col_indices"].roll(1)
    results["wrong pattern"] = refusal(lambda: set_model_state_dict(model, wrong, options=FULL))
    return results


def refusal(call: Callable) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
