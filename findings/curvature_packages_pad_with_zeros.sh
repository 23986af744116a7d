#!/usr/bin/env bash
# backpack-for-pytorch 1.7.1 and curvlinops-for-pytorch 3.0.1 with torch 2.13.0: convolutions with padding_mode="circular",
# "reflect" or "replicate".
#
# Expected: right gradients of each sample, right curvature, since the forward and the backward pass are torch's own; or
# an error, since both packages name what they do not support (BackPACK: count_include_pad=False, a weighted loss).
# Seen: no error, and numbers of a convolution that pads with zeros. Both take the layer's input and its attribute padding,
# and unfold the one with the other; torch pads such an input before the convolution, where neither looks. BackPACK's
# gradients of the samples do not add up to the gradient, the diagonal of the Hessian is far off, and curvlinops' KFAC
# is another matrix even where KFAC is exact. padding="same" has the same fate in BackPACK's gradients of samples.
# Biases and the other layers are right, so a check of some of the numbers may pass.
# Circular padding is what one takes for nets that commute with translations. A layer nn.CircularPad2d in front of a
# convolution without padding gives the right numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check backpack-for-pytorch==1.7.1 \
    curvlinops-for-pytorch==3.0.1 torch==2.13.0 torchvision==0.28.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import warnings
from importlib.metadata import version

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad, DiagHessian
from curvlinops import GGNLinearOperator, KFACLinearOperator
from torch import nn

warnings.filterwarnings("ignore", message="Full backward hook is firing|Using padding='same' with even")
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
X, LABELS = torch.randn(5, 2, 6, 6), torch.randint(0, 3, (5,))


def net(*first):
    return nn.Sequential(*first, nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 36, 3))


def weight_of(model):
    return next(model.parameters())


def error(found, right):
    return ((found - right).norm() / right.norm()).item()


def by_backpack(model, *extensions):
    """The parameters, with their gradients and what BackPACK adds to them."""
    model = extend(copy.deepcopy(model))
    with backpack(*extensions):
        extend(nn.CrossEntropyLoss())(model(X), LABELS).backward()
    return list(model.parameters())


def sums_of_samples(model):
    weight, *others = by_backpack(model, BatchGrad())
    assert all(error(p.grad_batch.sum(0), p.grad) < 1e-9 for p in others)
    return error(weight.grad_batch.sum(0), weight.grad)


def diagonal(model):
    weight = weight_of(model)
    (gradient,) = torch.autograd.grad(nn.CrossEntropyLoss()(model(X), LABELS), weight, create_graph=True)
    rows = [torch.autograd.grad(g, weight, retain_graph=True)[0].flatten()[k] for k, g in enumerate(gradient.flatten())]
    return error(by_backpack(model, DiagHessian())[0].diag_h, torch.stack(rows).view_as(weight))


def kfac(*first):
    """One image and one output position, no hidden layer: there KFAC is the Gauss-Newton matrix itself."""
    model = nn.Sequential(*first, nn.Flatten())
    data, parameters = [(torch.randn(1, 2, 3, 3), torch.randn(1, 2))], list(model.parameters())
    identity = torch.eye(sum(p.numel() for p in parameters))
    exact = GGNLinearOperator(model, nn.MSELoss(), parameters, data) @ identity
    return error(KFACLinearOperator(model, nn.MSELoss(), parameters, data, fisher_type="type-2") @ identity, exact)


print(*(f"{name} {version(name)}" for name in ("backpack-for-pytorch", "curvlinops-for-pytorch", "torch")))
print("errors of the weight      samples   Hessian   KFAC")
for mode in ("zeros", "circular", "reflect", "replicate"):
    model = net(nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode))
    found = (
        sums_of_samples(model),
        diagonal(model),
        kfac(nn.Conv2d(2, 2, 3, stride=3, padding=1, padding_mode=mode, bias=False)),
    )
    print(f"padding_mode={mode!r:12}", *(f"{number:9.1e}" for number in found))
    if mode == "zeros":
        assert max(found) < 1e-9
    else:
        assert min(found) > 0.03, f"the behavior has changed: {mode}"
same = sums_of_samples(net(nn.Conv2d(2, 4, 3, padding="same")))
print(f"padding='same'           {same:9.1e}")
assert same > 0.03, "the behavior has changed: same"
pad = nn.CircularPad2d(1)
found = (
    sums_of_samples(net(pad, nn.Conv2d(2, 4, 3))),
    diagonal(net(pad, nn.Conv2d(2, 4, 3))),
    kfac(pad, nn.Conv2d(2, 2, 3, stride=3, bias=False)),
)
print("nn.CircularPad2d before  ", *(f"{number:9.1e}" for number in found))
assert max(found) < 1e-9
PYTHON
