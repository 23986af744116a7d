#!/usr/bin/env bash
# nncf 3.4.0 with torch 2.13.0: nncf.prune, UNSTRUCTURED_MAGNITUDE_GLOBAL and UNSTRUCTURED_MAGNITUDE_LOCAL.
#
# Expected: global pruning by magnitude removes the smallest weights of the net, wherever they are, as documented
# ("weights with smaller absolute values contribute less", with importance "computed across all tensors selected for
# pruning"), and as torch.nn.utils.prune.global_unstructured does. The ratio asked for is the ratio that comes out.
# Seen: no error, and neither. (1) Each weight is divided by the norm of its whole tensor first. In a tensor of 100
# times as many weights each counts a tenth, so the largest layer pays for all: below, at 95%, it is empty, while the
# others keep half of theirs, and the net says the same to every input. torch's way leaves it 4% and has 81% right. At
# 90%, which one tries first, both are fine. A layer whose weights are multiplied by 1,000 gets the same mask.
# (2) What is equal to the threshold goes, too. A layer of binary weights is removed altogether, whether 50%, 10% or 0
# is asked for. Weights on a grid of 4 bits lose 64% at 50%. Random weights lose one in each tensor at 0.
# nncf.pruning_statistic tells, and nothing warns. Neither is documented, and a search for issues found none; 3.4.0 is
# the newest on PyPI. torch.nn.utils.prune is right in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nncf==3.4.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import logging
from importlib.metadata import version

import nncf
import torch
from nncf import PruneMode
from torch import nn
from torch.nn.utils import prune

nncf.set_log_level(logging.ERROR)
torch.set_num_threads(2)


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)

    def weighty(self):
        return [layer for layer in self.layers if isinstance(layer, (nn.Conv2d, nn.Linear))]


def by_nncf(net, mode, ratio, x):
    """The pruned net, and its masks in the order of the layers."""
    net = copy.deepcopy(net)
    names = [f"layers:{i}:weight__0." for i, layer in enumerate(net.layers) if layer in net.weighty()]
    pruned = nncf.prune(net, mode, ratio=ratio, examples_inputs=x)
    state = pruned.state_dict()
    found = [[value for key, value in state.items() if name in key and "binary_mask" in key] for name in names]
    assert all(len(masks) == 1 for masks in found), list(state)
    return pruned, [masks[0] for masks in found]


def by_torch(net, ratio):
    net = copy.deepcopy(net)
    weights = [(layer, "weight") for layer in net.weighty()]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=ratio)
    return net, [layer.weight_mask.bool() for layer, _ in weights]


def ratios(masks):
    return [1 - mask.float().mean().item() for mask in masks]


def overall(masks):
    return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)


def line(values):
    return ", ".join(f"{value:.1%}" for value in values)


print(*(f"{name} {version(name)}" for name in ("nncf", "torch")))
GLOBAL, LOCAL = PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL

# (1) A CNN that tells ten noisy patterns apart
draw = torch.Generator().manual_seed(0)
torch.manual_seed(0)
patterns = nn.functional.interpolate(torch.randn(10, 1, 4, 4, generator=draw), size=16, mode="bicubic")


def images(count):
    labels = torch.randint(0, 10, (count,), generator=draw)
    return patterns[labels] + 1.2 * torch.randn(count, 1, 16, 16, generator=draw), labels


def right(net, x, labels):
    with torch.no_grad():
        return (net(x).argmax(1) == labels).float().mean().item()


net = Net(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
    nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 256), nn.ReLU(),
    nn.Linear(256, 10),
)
LARGE = 3  # of the layers with weights
x, y = images(2000)
test, labels = images(1000)
optimizer = torch.optim.Adam(net.parameters(), 1e-3)
for epoch in range(4):
    for batch, answers in zip(x.split(64), y.split(64)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch), answers).backward()
        optimizer.step()
print(f"dense: {right(net, test, labels):.1%} right;",
      "weights of the layers:", *(layer.weight.numel() for layer in net.weighty()))
for ratio in 0.9, 0.95:
    pruned, masks = by_nncf(net, GLOBAL, ratio, x[:1])
    plain, plain_masks = by_torch(net, ratio)
    good, plain_good = right(pruned, test, labels), right(plain, test, labels)
    with torch.no_grad():
        spread = pruned(test).std(0).max().item()
    print(f"nncf, {ratio:.0%}: {line(ratios(masks))} of the layers pruned ({int(masks[LARGE].sum())} weights of the "
          f"largest left), {good:.1%} right, outputs vary by {spread:.2g}")
    assert (spread == 0) == (ratio == 0.95), "the behavior has changed: outputs"
    print(f"torch, {ratio:.0%}: {line(ratios(plain_masks))} pruned, {plain_good:.1%} right")
    for kept in masks, plain_masks:
        assert abs(overall(kept) - ratio) < 1e-3
    scores = [layer.weight.detach().abs() / layer.weight.detach().norm() for layer in net.weighty()]
    least = torch.cat([score.flatten() for score in scores]).quantile(ratio)
    agree = [(mask == (score > least)).float().mean().item() for mask, score in zip(masks, scores)]
    assert min(agree) > 0.999, "the behavior has changed: it is not |w| / ‖W‖"
    if ratio == 0.95:
        assert not masks[LARGE].any() and max(ratios(masks[:LARGE])) < 0.6, "the behavior has changed: layers"
        assert plain_masks[LARGE].float().mean() > 0.02
        assert good < 0.2 and plain_good > 0.5, "the behavior has changed: what is right"
    else:
        assert good > 0.9 and plain_good > 0.9

scaled = copy.deepcopy(net)
scaled.weighty()[0].weight.data *= 1000
before, after = (by_nncf(n, GLOBAL, 0.7, x[:1])[1] for n in (net, scaled))
changed = sum((a != b).sum().item() for a, b in zip(before, after))
plain_changed = sum((a != b).sum().item() for a, b in zip(by_torch(net, 0.7)[1], by_torch(scaled, 0.7)[1]))
print(f"a layer times 1,000: {changed} masks change in nncf, {plain_changed} in torch")
assert changed <= 2, "the behavior has changed: the scale of a layer counts"
assert plain_changed > 20

# (2)
one = torch.randn(1, 64)
weights = torch.randn(64, 64)
for name, numbers in (
    ("binary", weights.sign()), ("4 bits", (weights / weights.abs().max() * 7).round()), ("random", weights),
):
    layer = Net(nn.Linear(64, 64, bias=False))
    layer.weighty()[0].weight.data = numbers
    asked = 0, 0.1, 0.5
    got = [ratios(by_nncf(layer, LOCAL, ratio, one)[1])[0] for ratio in asked]
    everywhere = [ratios(by_nncf(layer, GLOBAL, ratio, one)[1])[0] for ratio in asked]
    plain = [ratios(by_torch(layer, ratio)[1])[0] for ratio in asked]
    zeros = (numbers == 0).float().mean().item()
    print(f"{name} weights ({zeros:.0%} zeros), asked for {line(asked)}: local {line(got)}, global {line(everywhere)}, "
          f"torch {line(plain)}")
    assert all(abs(ratio - wish) < 1e-3 for ratio, wish in zip(plain, asked))
    if name == "binary":
        assert got == everywhere == [1, 1, 1], "the behavior has changed: binary weights stay"
    elif name == "4 bits":
        assert 0.6 < got[2] < 0.7, "the behavior has changed: 4 bits"
    else:
        assert got[0] == 1 / 4096, "the behavior has changed: ratio=0"
        assert all(abs(ratio - wish) < 1e-3 for ratio, wish in zip(got, asked))
PYTHON
