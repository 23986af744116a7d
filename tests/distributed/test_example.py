"""The program of tensor parallelism, started by torchrun as its first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
ROOT = Path(__file__).parents[2]


def test_torchrun_divides_the_weights_and_changes_no_loss(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "examples" / "tensor_parallel.py"), "--steps", "4", "--save", "state.pt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    total, *held = (int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", done.stdout.splitlines()[0]))
    assert len(held) == 2
    assert sum(held) == total
    assert max(held) < 0.51 * total
    assert float(re.search(r"at most (\S+) apart", done.stdout)[1]) < 1e-4
    values = [tensor for name, tensor in torch.load(tmp_path / "state.pt").items() if name.endswith(".values")]
    assert sum(tensor.numel() for tensor in values) == total
