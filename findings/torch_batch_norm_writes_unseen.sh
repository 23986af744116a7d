#!/usr/bin/env bash
# torch 2.13.0: batch norm that ran in evaluation mode, and runs in training mode before the backward pass.
#
# Expected: the gradient of what was computed, or "modified by an inplace operation", as when somebody changes
# running_var by hand: autograd counts what is written into a tensor, and batch norm saves its statistics for backward.
# Seen: no error, and another gradient. In training mode batch norm writes running_mean and running_var without counting, so
# the backward pass of the earlier call takes the later statistics. Each input's gradient is off by a factor of its
# channel, the square root of old variance over new, and the order of two calls in one loss decides. Whoever looks at
# _version, to see whether a buffer changed, finds that it did not. Instance norm with running statistics counts.
# PyTorch's issues 13402 (2018) and 120622 (2024), both open, have it; the documentation is silent.
# Calling in training mode first is right, and so is a copy of the module for evaluation.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn

print("torch", torch.__version__)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
x, batches = torch.randn(8, 6).double(), [3 * torch.randn(32, 6).double() + 1 for _ in range(4)]


def gradient(wrapped=lambda net: net, last=False):
    """Of a loss in evaluation mode, which is computed before or after those of the batches, and theirs."""
    twin = copy.deepcopy(net)
    loss = 0 if last else wrapped(twin).eval()(x).square().sum()
    for batch in batches:
        loss = loss + twin.train()(batch).square().mean()
    if last:
        loss = loss + wrapped(twin).eval()(x).square().sum()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in twin.parameters()])


class Copied(nn.Module):
    """In evaluation mode by other statistics of the same numbers."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return torch.func.functional_call(self.net, buffers, (x,))


right, found = gradient(Copied), gradient()
error = ((found - right).norm() / right.norm()).item()
print(f"evaluation, then training, then backward: the gradient is off by {error:.0%}; no error")
assert error > 0.02, "the behavior has changed: the gradient is right"
assert torch.allclose(gradient(last=True), gradient(Copied, last=True))

bn = copy.deepcopy(net[1])
inputs = torch.randn(8, 4).double().requires_grad_()
output = bn.eval()(inputs)
dy = torch.randn_like(output)
(before,) = torch.autograd.grad(output, inputs, dy, retain_graph=True)
old, versions = bn.running_var.clone(), (bn.running_mean._version, bn.running_var._version)
bn.train()(3 * torch.randn(32, 4).double())
(after,) = torch.autograd.grad(output, inputs, dy, retain_graph=True)
ratio = ((old + bn.eps) / (bn.running_var + bn.eps)).sqrt()
print("versions before and after a call in training mode:", versions, (bn.running_mean._version, bn.running_var._version))
print("gradient after over before, by channel:", [round(value, 3) for value in (after / before)[0].tolist()])
assert versions == (bn.running_mean._version, bn.running_var._version), "the behavior has changed: it counts"
assert torch.allclose(after, before * ratio) and not torch.allclose(after, before, rtol=0.05)

with torch.no_grad():
    bn.running_var.mul_(2)
try:
    torch.autograd.grad(output, inputs, dy)
    raise AssertionError("the behavior has changed: a change by hand is not seen")
except RuntimeError as error:
    print("by hand:", str(error)[:83])

instance = nn.InstanceNorm1d(4, track_running_stats=True)
version = instance.running_mean._version
instance(torch.randn(2, 4, 5))
assert instance.running_mean._version > version, "the behavior has changed: instance norm"
PYTHON
