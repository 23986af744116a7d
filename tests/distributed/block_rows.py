"""What each of two gloo processes does with layers whose blocks are divided among them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

import efcn_sparse as es
from efcn_sparse.checkpoint import save_sharded
from efcn_sparse.distributed import BlockRowParallel
from tests.distributed import workers

STEPS, BATCH = 4, 6
LAYOUTS = {
    "sharded features": dict(output_layouts=Shard(-1)),
    "sharded batch": dict(input_layouts=Shard(0), output_layouts=Shard(0)),
    "DTensor": dict(use_local_output=False),
}


def patterns() -> dict[str, es.BlockPattern]:
    """Kinds of patterns, with even and odd numbers of blocks, cut inside a block row or at its end."""
    generator = torch.Generator().manual_seed(11)
    mask = torch.rand(13, 17, generator=generator) < 0.3
    mask[3:9] = False  # block rows 1 and 2 are empty
    return {
        "rectangular": es.BlockPattern.random((24, 40), (4, 8), 0.55, generator),
        "ragged": es.BlockPattern.random((13, 17), (3, 4), 0.6, generator),
        "masked, empty rows": es.BlockPattern.from_mask(mask, (3, 4)),
        "one row": es.BlockPattern.dense((4, 40), (4, 8)),
        "one block": es.BlockPattern.from_bsr([0, 0, 1], [1], (6, 6), (3, 3)),
        "no blocks": es.BlockPattern.from_bsr([0, 0, 0], [], (6, 6), (3, 3)),
    }


def layer(kind: str, bias: bool = True) -> es.SparseLinear:
    torch.manual_seed(2)
    pattern = patterns()[kind]
    return es.SparseLinear(pattern.shape[1], pattern.shape[0], pattern, bias=bias, dtype=torch.float64)


def batch(sparse: es.SparseLinear, step: int) -> tuple[Tensor, Tensor]:
    """An input, and the factor that y is weighted with in the loss: so dy is random too."""
    generator = torch.Generator().manual_seed(step)
    return tuple(
        torch.randn(BATCH, n, generator=generator, dtype=torch.float64)
        for n in (sparse.in_features, sparse.out_features)
    )


def fit(sparse: es.SparseLinear, optimizer: str) -> dict[str, Tensor]:
    """Some steps; the last output and the gradient of the last input."""
    optimizer = workers.OPTIMIZERS[optimizer](sparse.parameters())
    for step in range(STEPS):
        x, weight = batch(sparse, step)
        optimizer.zero_grad()
        y = sparse(x.requires_grad_())
        (y.square() * weight).sum().backward()
        optimizer.step()
    with torch.no_grad():
        quiet = sparse(x)
    return {"y": y.detach(), "dx": x.grad, "without gradients": quiet}


def net(seed: int = 0) -> nn.Sequential:
    return workers.net(seed).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Each process sees the whole batch."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.randint(5, (BATCH,), generator=generator)).backward()
        clip(model, 0.5)
        optimizer.step()


def clip(model: nn.Module, most: float) -> None:
    """The recipe of docs/distributed.md; for one process, clip_grad_norm_."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    divided = [p for p in model.parameters() if isinstance(p, dist.tensor.DTensor)]
    plain = [p for p in model.parameters() if not isinstance(p, dist.tensor.DTensor)]
    norms = [get_total_norm([p.grad for p in plain])]
    if divided:
        norms.append(get_total_norm([p.grad for p in divided]).full_tensor())
    total = torch.stack(norms).norm()
    for part in (divided, plain):
        clip_grads_with_norm_(part, most, total)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict on rank 0, as it is now: plain parameters in it are the model's own memory."""
    return {name: tensor.clone() for name, tensor in get_model_state_dict(model, options=workers.FULL).items()}


def leak(model: nn.Module) -> dict[str, float]:
    x = torch.randn(BATCH, 3, 6, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    with es.record_leak(model) as found:
        model(x).square().sum().backward()
    return {name: part.outside for name, part in found.layers.items()}


def save_alone(folder: Path) -> None:
    """A checkpoint of one process, written before the two start."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save({"model": net(seed=5).state_dict()}, checkpoint_id=folder / "of one")


def work(rank: int, folder: Path) -> dict:
    mesh = init_device_mesh("cpu", (workers.WORLD,))
    return {
        "layers": {
            (kind, optimizer): _layer(kind, optimizer, mesh) for kind in patterns() for optimizer in workers.OPTIMIZERS
        },
        "layouts": {name: _layout(arguments, rank, mesh) for name, arguments in LAYOUTS.items()},
        "chain": _chain(mesh),
        "autocast": _autocast(mesh),
        "in place": parallelize_module(layer("ragged"), mesh, BlockRowParallel())(batch(layer("ragged"), 0)[0]).relu_(),
        "own copy": _own_copy(rank, mesh),
        "block rows": _net(folder, mesh),
        "from meta": _from_meta(folder, mesh),
        "two-dimensional": [_two_dimensional(shape, rank) for shape in ((2, 1), (1, 2))],
        "refused": _refused(rank, mesh),
    }


def _layer(kind: str, optimizer: str, mesh: dist.DeviceMesh) -> dict:
    sparse = layer(kind)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(dist.get_rank())  # the first process's numbers win
    parallelize_module(sparse, mesh, BlockRowParallel())
    found = fit(sparse, optimizer)
    return {**found, "own blocks": len(sparse.values.to_local()), "state": state_of(sparse)}


def _layout(arguments: dict, rank: int, mesh: dist.DeviceMesh) -> dict:
    sparse = parallelize_module(layer("ragged"), mesh, BlockRowParallel(**arguments))
    x, weight = batch(sparse, 0)
    by_batch = isinstance(arguments.get("input_layouts"), Shard)
    mine = x.chunk(workers.WORLD)[rank].clone().requires_grad_() if by_batch else x.requires_grad_()
    y = sparse(mine)
    if isinstance(y, dist.tensor.DTensor):
        y = y.full_tensor()
    dim = {"output_layouts": None, **arguments}["output_layouts"]
    mine_of_weight = weight if dim is None else weight.chunk(workers.WORLD, dim.dim)[rank]
    (y * mine_of_weight).sum().backward()
    return {"y": y.detach(), "dx": mine.grad, "values": sparse.values.grad.full_tensor(), "bias": sparse.bias.grad}


def _chain(mesh: dist.DeviceMesh) -> dict:
    """DTensors between two layers, uneven in their features."""
    first, second = chain()
    parallelize_module(first, mesh, BlockRowParallel(output_layouts=Shard(-1), use_local_output=False))
    parallelize_module(second, mesh, BlockRowParallel(input_layouts=Shard(-1)))
    x, _ = batch(first, 0)
    y = second(first(x).relu())
    y.square().sum().backward()
    return {"y": y.detach(), "values": first.values.grad.full_tensor(), "bias": first.bias.grad}


def _autocast(mesh: dist.DeviceMesh) -> Tensor:
    sparse = parallelize_module(layer("ragged").float(), mesh, BlockRowParallel())
    with torch.autocast("cpu", torch.bfloat16):
        return sparse(batch(sparse, 0)[0].float()).detach()


def chain() -> tuple[es.SparseLinear, es.SparseLinear]:
    torch.manual_seed(4)
    after = es.BlockPattern.random((10, 13), (4, 4), 0.6, torch.Generator().manual_seed(1))
    return layer("ragged"), es.SparseLinear(13, 10, after, bias=False, dtype=torch.float64)


def _own_copy(rank: int, mesh: dist.DeviceMesh) -> Tensor:
    """Without a source, nothing travels: each process keeps its part of its own numbers."""
    sparse = layer("rectangular", bias=False)
    with torch.no_grad():
        sparse.values.fill_(rank)
    parallelize_module(sparse, mesh, BlockRowParallel(), src_data_rank=None)
    return sparse.values.full_tensor().detach()


def _net(folder: Path, mesh: dist.DeviceMesh) -> dict:
    model = parallelize_module(net(), mesh, {"[024]": BlockRowParallel()})
    optimizer = workers.OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer)
    full = state_of(model)
    results = {
        "leak": leak(model),
        "divided": sorted(name for name, p in model.named_parameters() if isinstance(p, dist.tensor.DTensor)),
        "full": full,
        "optimizer": get_optimizer_state_dict(model, optimizer, options=workers.FULL),
        "own numbers": sum(state["exp_avg"].to_local().numel() for p, state in optimizer.state.items() if p.dim() == 3),
    }
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "of two")
    if dist.get_rank() == 0:
        save_sharded(full, folder / "shards of two")
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder / "of one")
    set_model_state_dict(model, state["model"])
    results["loaded of one"] = state_of(model)
    set_model_state_dict(model, net(seed=6).state_dict(), options=workers.FULL)
    results["loaded full"] = state_of(model)
    return results


def _from_meta(folder: Path, mesh: dist.DeviceMesh) -> dict:
    """No process ever holds all numbers of a layer."""
    model = net(seed=8).to("meta")
    parallelize_module(model, mesh, BlockRowParallel())
    model.to_empty(device="cpu")
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=folder / "of one")
    set_model_state_dict(model, state["model"])
    return state_of(model)


def _two_dimensional(shape: tuple[int, int], rank: int) -> dict:
    """Data parallel by FSDP2 in one dimension of the mesh, blocks divided in the other."""
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "blocks"))
    model = parallelize_module(net(), mesh["blocks"], BlockRowParallel())
    fully_shard(model, mesh=mesh["data"])
    optimizer = workers.OPTIMIZERS["adamw"](model.parameters())
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCH, 3, 6, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (BATCH,), generator=generator)
    share = slice(rank * BATCH // shape[0], (rank + 1) * BATCH // shape[0]) if shape[0] > 1 else slice(None)
    nn.functional.cross_entropy(model(x[share]), target[share]).backward()
    optimizer.step()
    return state_of(model)


def _refused(rank: int, mesh: dist.DeviceMesh) -> dict[str, str]:
    unlike = es.BlockPattern.random((8, 8), (2, 2), 0.5, torch.Generator().manual_seed(rank))
    fused = net()
    es.FusedOptimizer(fused, workers.OPTIMIZERS["sgd"])
    divided = parallelize_module(layer("ragged"), mesh, BlockRowParallel())
    x, dy = batch(divided, 0)
    plan = BlockRowParallel()
    square = init_device_mesh("cpu", (workers.WORLD, 1))
    low_rank = es.embed(nn.Conv2d(2, 2, 2), torch.zeros(1, 2, 4, 4), support=es.LowRank(1))
    calls = {
        "unlike patterns": lambda: parallelize_module(es.SparseLinear(8, 8, unlike), mesh, plan),
        "no sparse layer": lambda: parallelize_module(nn.Linear(3, 3), mesh, plan),
        "layout": lambda: parallelize_module(net()[0], mesh, BlockRowParallel(output_layouts=Shard(-1))),
        "twice": lambda: parallelize_module(divided, mesh, plan),
        "fused": lambda: parallelize_module(fused, mesh, plan),
        "low rank": lambda: parallelize_module(low_rank, mesh, plan),
        "fused later": lambda: es.FusedOptimizer(divided, workers.OPTIMIZERS["sgd"]),
        "mesh": lambda: parallelize_module(layer("ragged"), square, plan),
        "width": lambda: divided(x[:, 1:]),
        "regrow": lambda: es.regrow(divided, dy, x, blocks=1),
    }
    return {name: workers.refusal(call) for name, call in calls.items()}
