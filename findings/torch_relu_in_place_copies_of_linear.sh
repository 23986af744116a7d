#!/usr/bin/env bash
# torch 2.13.0: the backward pass of nn.ReLU(inplace=True) behind nn.Linear.
#
# Expected: in place saves memory in the forward pass and changes nothing in the backward pass, whatever layer stands before.
# Seen: so it is on inputs [N, features]. On sequences [N, T, features] the output of nn.Linear is a view of a product, and what
# is done in place to a view is undone by CopySlices and AsStrided: the backward pass of the two layers allocates four
# buffers of the size of the output instead of one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def buffers(shape, inplace):
    """How many buffers of the size of the output the backward pass allocates, and the nodes behind it."""
    y = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(inplace))(torch.randn(shape))
    nodes = [y.grad_fn.name(), y.grad_fn.next_functions[0][0].name()]
    gradient = torch.ones_like(y)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        y.backward(gradient)
    return sum(event.self_cpu_memory_usage == y.nbytes for event in profiled.events()), nodes


for inplace in (False, True):
    for shape in ((4096, 64), (64, 64, 64)):
        print(f"torch {torch.__version__}, inplace={inplace}, input {shape}:", *buffers(shape, inplace))
assert [buffers((4096, 64), inplace)[0] for inplace in (False, True)] == [1, 1], "the behavior has changed"
assert [buffers((64, 64, 64), inplace)[0] for inplace in (False, True)] == [1, 4], "the behavior has changed"
assert "CopySlices" in buffers((64, 64, 64), True)[1][1], "the behavior has changed"
PYTHON
