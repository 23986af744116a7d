"""Saving and loading hold a piece of the model at a time, never a second copy of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_MIB = 1 << 20
_PROGRAM = """
import sys, torch, efcn_sparse as es
from pathlib import Path
from efcn_sparse.checkpoint import load_sharded, save_sharded

def status(key):
    return 1024 * int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])

def growth(call):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

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


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_growth(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    size, saving, loading = map(int, done.stdout.split())
    assert size > 200 * _MIB
    assert saving < 32 * _MIB, f"saving {size / _MIB:.0f} MiB took {saving / _MIB:.0f} MiB more"
    assert loading < 32 * _MIB, f"loading {size / _MIB:.0f} MiB took {loading / _MIB:.0f} MiB more"
