"""What each of two gloo processes does about patterns: comparing them, and moving their blocks together."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import efcn_sparse as es
from efcn_sparse.distributed import check_same_patterns, join_factors
from efcn_sparse.gradients import Factors
from tests.distributed import workers

ROUNDS, STEPS_BETWEEN, BATCH = 3, 2, 10


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    patterns = [
        es.BlockPattern.random((16, 20), (2, 4), 0.4, torch.Generator().manual_seed(1)),
        es.BlockPattern.random((6, 16), (3, 4), 0.4, torch.Generator().manual_seed(2)),
    ]
    layers = [es.SparseLinear(p.shape[1], p.shape[0], p, dtype=torch.float64) for p in patterns]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1])


def train(model: nn.Module, sparse: nn.Sequential, shares: list[slice], regrown: list) -> torch.optim.Optimizer:
    """RigL: every few steps, blocks move by the gradient of the whole batch."""
    optimizer = workers.OPTIMIZERS["adamw"](model.parameters())
    generator = torch.Generator().manual_seed(5)
    join = join_factors if model is not sparse else None
    growth = es.Growth(sparse, optimizer, every=STEPS_BETWEEN, layers=["0", "2"], join=join)
    for _ in range(ROUNDS * STEPS_BETWEEN):
        x = torch.randn(BATCH, 20, generator=generator, dtype=torch.float64)
        target = torch.randint(6, (BATCH,), generator=generator)
        optimizer.zero_grad()
        with growth.watch():
            for share in shares:
                (nn.functional.cross_entropy(model(x[share]), target[share]) / len(shares)).backward()
        optimizer.step()
        regrown += [(done.grown, done.gradient_norms) for done in growth.step().values()]
    return optimizer


SHARES = [slice(0, 4), slice(4, 10)]  # of unlike sizes


def work(rank: int) -> dict:
    sparse = net(seed=rank)
    regrown: list = []
    optimizer = train(DistributedDataParallel(sparse), sparse, [SHARES[rank]], regrown)
    check_same_patterns(sparse)
    return {
        "regrown": regrown,
        "regrown model": sparse.state_dict(),
        "regrown moments": [optimizer.state[p]["exp_avg"] for p in sparse.parameters()],
        "unlike": workers.refusal(lambda: check_same_patterns(_unlike(rank))),
        "missing": workers.refusal(lambda: check_same_patterns(_unlike(0)[: 1 + rank])),
        "alike": workers.refusal(lambda: check_same_patterns(DistributedDataParallel(_unlike(0)))),
        "unlike in training": workers.refusal(lambda: DistributedDataParallel(_unlike(rank))(torch.ones(1, 8))),
        "unlike factors": workers.refusal(lambda: join_factors(Factors(torch.ones(2, 3), torch.ones(3, 3)))),
    }


def _unlike(rank: int) -> nn.Sequential:
    """Equal numbers of blocks, in the second layer at different places."""
    patterns = [es.BlockPattern.random((8, 8), (2, 2), 0.5, torch.Generator().manual_seed(seed)) for seed in (7, rank)]
    return nn.Sequential(*(es.SparseLinear(8, 8, pattern) for pattern in patterns))
