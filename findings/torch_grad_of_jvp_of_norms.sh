#!/usr/bin/env bash
# torch 2.13.0: the gradient of a derivative along a direction, torch.func.grad of torch.func.jvp, through LayerNorm,
# InstanceNorm, and BatchNorm without running statistics.
#
# Expected: a product with the Hessian, as by grad of grad and by jvp of grad: the order of the two derivatives does not matter.
# Seen: a wrong one, without a word. Forward mode takes the mean and the deviation of the batch as numbers without a
# derivative of their own, so what the outer gradient would have added is lost. GroupNorm and RMSNorm, and BatchNorm in
# evaluation mode, are right.
# "Reverse over forward" is the way that textbooks recommend for a single product with the Hessian.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.func import grad, jvp

torch.manual_seed(0)
x, w, v = torch.randn(18, 4), torch.randn(8, 4), torch.randn(8, 4)
x, w, v = x.double(), w.double(), v.double()
norms = {
    "LayerNorm": (nn.LayerNorm(8), False),
    "InstanceNorm1d": (nn.InstanceNorm1d(8), False),
    "BatchNorm1d without running statistics": (nn.BatchNorm1d(8, track_running_stats=False), False),
    "GroupNorm": (nn.GroupNorm(2, 8), True),
    "RMSNorm": (nn.RMSNorm(8), True),
    "BatchNorm1d in evaluation mode": (nn.BatchNorm1d(8).eval(), True),
}
for name, (norm, right) in norms.items():
    norm.double()
    shape = (lambda y: y.view(3, 6, 8).mT) if isinstance(norm, nn.InstanceNorm1d) else (lambda y: y)
    loss = lambda w: norm(shape(x @ w.T)).pow(3).sum()
    by_gradients = grad(lambda w: (grad(loss)(w) * v).sum())(w)
    forward_over_reverse = jvp(grad(loss), (w,), (v,))[1]
    reverse_over_forward = grad(lambda w: jvp(loss, (w,), (v,))[1])(w)
    both = forward_over_reverse, reverse_over_forward
    errors = [((one - by_gradients).norm() / by_gradients.norm()).item() for one in both]
    print(f"{name}: off by {errors[0]:.1e} as jvp of grad, {errors[1]:.1e} as grad of jvp")
    assert errors[0] < 1e-10, "the behavior has changed: jvp of grad"
    assert (errors[1] < 1e-10) == right, "the behavior has changed: grad of jvp"
print("torch", torch.__version__)
PYTHON
