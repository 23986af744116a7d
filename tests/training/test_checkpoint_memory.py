"""Saving and loading a checkpoint hold a piece at a time: the optimizer's state is not joined, nothing is mapped."""

import os

import pytest

from tests.processes import CLEAR_REFS, MIB, numbers_of

PROGRAM = """
import sys, torch, efcn_sparse as es
from pathlib import Path
from efcn_sparse.training.run.checkpoint import load_checkpoint, save_checkpoint
from tests.processes import growth

def made(fused):
    p = es.BlockPattern.dense((4096, 3072), (64, 64))
    net = torch.nn.Sequential(es.SparseLinear(3072, 4096, p, device="meta")).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.arange(parameter.shape[-1]))
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    return net, es.FusedOptimizer(net, sgd) if fused else sgd(list(net.parameters()))

def sums(net, optimizer):
    tensors = [*net.parameters(), *(one["momentum_buffer"] for one in optimizer.state.values())]
    return sum(tensor.sum(dtype=torch.float64).item() for tensor in tensors)

torch.set_num_threads(1)
path, fused = Path(sys.argv[1]) / "here.safetensors", sys.argv[2] == "fused"
small = torch.nn.Linear(2, 2)
save_checkpoint(path, small), load_checkpoint(path, small)  # what is imported on first use
net, optimizer = made(fused)
net(torch.ones(1, 3072)).sum().backward()
optimizer.step()
optimizer.zero_grad()
saving = growth(lambda: save_checkpoint(path, net, optimizer))
expected = sums(net, optimizer)
reloading = growth(lambda: load_checkpoint(path, net, optimizer))
del net, optimizer
net, optimizer = made(fused)
loading = growth(lambda: load_checkpoint(path, net, optimizer))
assert sums(net, optimizer) == expected
assert path.stat().st_size > 2 * net[0].values.nbytes
print(net[0].values.nbytes, saving, reloading, loading)
"""


@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.parametrize("kind", ["fused", "unfused"])
def test_growth(tmp_path, kind):
    size, saving, reloading, loading = numbers_of(PROGRAM, tmp_path, kind)
    assert size == 48 * MIB
    assert saving < 24 * MIB, f"saving took {saving / MIB:.0f} MiB"
    assert reloading < 24 * MIB, f"loading into what is there took {reloading / MIB:.0f} MiB"
    assert loading < size + 24 * MIB, (
        f"loading, momentum of {size / MIB:.0f} MiB included, took {loading / MIB:.0f} MiB"
    )
