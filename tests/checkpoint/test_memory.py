"""Saving and loading hold a piece of the model at a time, never a second copy of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.processes import CLEAR_REFS, MIB, numbers_of

_PROGRAM = """
import sys, torch, efcn_sparse as es
from efcn_sparse.checkpoint import load_sharded, save_sharded
from tests.processes import growth

torch.set_num_threads(1)
folder = sys.argv[1]
small = torch.nn.Linear(2, 2)
save_sharded(small, folder + "/small"), load_sharded(small, folder + "/small")  # what is imported on first use
p = es.BlockPattern.dense((8192, 6144), (64, 64))
conv = torch.nn.Conv2d(512, 512, 8, device="meta").to(memory_format=torch.channels_last)
net = torch.nn.Sequential(es.SparseLinear(6144, 8192, p, device="meta"), conv).to_empty(device="cpu")
with torch.no_grad():
    for parameter in net.parameters():
        parameter.copy_(torch.arange(parameter.shape[-1]))
expected = {name: tensor.sum().item() for name, tensor in net.named_parameters()}
saving = growth(lambda: save_sharded(net, folder, shard_bytes=32 << 20))
with torch.no_grad():
    for parameter in net.parameters():
        parameter.zero_()
loading = growth(lambda: load_sharded(net, folder))
assert {name: tensor.sum().item() for name, tensor in net.named_parameters()} == expected
print(sum(p.nbytes for p in net.parameters()), saving, loading)
"""


@pytest.mark.skipif(not os.access(CLEAR_REFS, os.W_OK), reason="the peak cannot be reset here")
def test_growth(tmp_path: Path) -> None:
    size, saving, loading = numbers_of(_PROGRAM, tmp_path)
    assert size > 200 * MIB
    assert saving < 32 * MIB, f"saving {size / MIB:.0f} MiB took {saving / MIB:.0f} MiB more"
    assert loading < 32 * MIB, f"loading {size / MIB:.0f} MiB took {loading / MIB:.0f} MiB more"
