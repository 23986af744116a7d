"""The experiment of a billion weights, at twenty million: what it checks, it sees."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.extension import extension_status
from efcn_sparse.gradients import record_factors
from experiments import scale


@pytest.mark.slow
@pytest.mark.skipif(not extension_status().available, reason="the reference backend gathers blocks, so it holds more")
@pytest.mark.parametrize(("options", "status"), [([], 0), (["--optimizer", "torch"], 1), (["--budget", "1.1"], 0)])
def test_steps_are_right_and_only_unfused_ones_hold_a_gradient(options, status):
    command = [sys.executable, "-m", "experiments.scale", "--pixels", "32", "--threads", "1", "--steps", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == status, done.stdout + done.stderr
    assert ("**Not within bounds.**" if status else "All within bounds.") in done.stdout


@pytest.mark.parametrize("spoil", [0.0, 1e-3])
def test_one_wrong_entry_of_a_sampled_row_is_seen(spoil):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    layer = EmbeddedConv.from_conv(conv, (9, 8))
    with record_factors(layer) as factors:
        (layer(torch.randn(4, 3, 9, 8)) * torch.randn(4, 8, 5, 4)).sum().backward()
    with torch.no_grad():
        layer.linear.values.sub_(scale.RATE * layer.linear.values.grad)
        layer.linear.values[0, 0] += spoil
    found = scale.errors(conv, layer, factors["linear"])
    assert all((error <= scale.TOLERANCE[torch.float32]) == (spoil == 0.0) for error in found.values())
