"""All layers share the memory of one gradient slice."""

import torch
from torch import nn

import efcn_sparse as es


def test_the_workspace_is_that_of_the_largest_layer_and_not_their_sum() -> None:
    patterns = [es.BlockPattern.dense((64, 64), (16, 16)), es.BlockPattern.dense((128, 64), (16, 16))]
    small, large = (es.SparseLinear(64, pattern.shape[0], pattern) for pattern in patterns)
    make = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
    optimizer = es.FusedOptimizer(nn.Sequential(small, nn.ReLU(), large), make)
    assert optimizer.workspace_bytes == large.values.nbytes
    both = es.FusedOptimizer(nn.Sequential(*(es.SparseLinear(64, 64, patterns[0]).to(d) for d in DTYPES)), make)
    assert both.workspace_bytes == 16 * 16 * 16 * sum(d.itemsize for d in DTYPES)  # one for each dtype


DTYPES = (torch.float32, torch.float64)
