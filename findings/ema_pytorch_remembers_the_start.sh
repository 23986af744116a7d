#!/usr/bin/env bash
# ema-pytorch 0.8.3 with torch 2.13.0: averages of weights with update_every > 1, and nets with masks.
#
# Expected: update_every takes every n-th net into the average "to save on compute", as the README says; where nets
# change slowly that is about the same average. KarrasEMA and PostHocEMA are as wide as the sigma_rel asked for.
# Seen: beta is that of one step, and is applied once in n steps, so too little is forgotten. In a power function that
# is another exponent, and what it keeps is the start of the run. (1) KarrasEMA at its default, update_every=100, after
# 10,000 steps: asked for sigma_rel=0.28, 94% of the "average" is the net after step 1; asked for 0.05, it is 40%.
# (2) PostHocEMA with update_every=10, as in the README: asked for 0.05, the width is 0.25. What is synthesized for 0.15
# from such averages has 0.32, and 32% of it is the net after step 1.
# (3) EMA, whose default is 10, with inv_gamma=1 and power=1: "implements a simple average", as documented, and half of
# it is the net after step 1. With beta=0.999 the average is 8,600 steps old after 20,000, instead of 1,000.
# Who tunes sigma_rel or beta then tunes how much of the start is left. (4) Buffers of integers and bool are never taken
# over, not even by the copies before update_after_step: the average of a net that is pruned keeps the mask of the net
# that it was made from, and is dense. torch's AveragedModel copies them if it isn't to average them.
# update_every=1 is right in (1) to (3). The README has none of it, nor has an issue that we found; a fork, nitrous-ema,
# has a step_size_correction. For a fixed beta pass beta ** update_every.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ema-pytorch==0.8.3 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile
from importlib.metadata import version

import torch
from ema_pytorch import EMA, PostHocEMA
from ema_pytorch.post_hoc_ema import KarrasEMA
from torch import nn
from torch.optim.swa_utils import AveragedModel


class Steps(nn.Module):
    """After step t all numbers are 0 but the t-th, so an average shows the share that each step has in it."""

    def __init__(self, steps):
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(steps + 1))
        self.numbers.data[0] = 1


def run(make, steps):
    net = Steps(steps)
    average = make(net)
    for step in range(1, steps + 1):
        net.numbers.data[step - 1] = 0
        net.numbers.data[step] = 1
        average.update()
    return average


def look(name, average):
    """Mean and deviation of the steps in an average, in lengths of the run, and the share of the first."""
    share = average.ema_model.numbers.detach().double()
    assert abs(share.sum() - 1) < 1e-3 and share[0] < 1e-3
    time = torch.arange(len(share)).double() / (len(share) - 1)
    mean = (share * time).sum().item()
    deviation = ((share * (time - mean) ** 2).sum() ** 0.5).item()
    print(f"{name:58}: mean {mean:.3f}, deviation {deviation:.3f}, share of step 1: {share[1]:.1%}")
    return mean, deviation, share[1].item()


print(*(f"{name} {version(name)}" for name in ("ema-pytorch", "torch")))

# (1)
for sigma, least in ((0.05, 0.35), (0.1, 0.6), (0.28, 0.9)):
    _, _, first = look(f"KarrasEMA, sigma_rel={sigma}", run(lambda n: KarrasEMA(n, sigma_rel=sigma), 10_000))
    assert first > least, "the behavior has changed: KarrasEMA forgets the start"
    average = run(lambda n: KarrasEMA(n, sigma_rel=sigma, update_every=1), 10_000)
    _, width, first = look(f"KarrasEMA, sigma_rel={sigma}, update_every=1", average)
    assert abs(width - sigma) < 0.001 and first < 0.001

# (2)
for every in (10, 1):
    with tempfile.TemporaryDirectory() as checkpoints:
        average = run(
            lambda n: PostHocEMA(
                n, sigma_rels=(0.05, 0.28), update_every=every, checkpoint_every_num_steps=500,
                checkpoint_folder=checkpoints, checkpoint_dtype=torch.float32,
            ),
            10_000,
        )
        for sigma in (0.05, 0.15, 0.28):
            made = average.synthesize_ema_model(sigma_rel=sigma)
            _, width, first = look(f"PostHocEMA, update_every={every}, synthesized for {sigma}", made)
            if every == 1:
                assert abs(width - sigma) < 0.002 and first < 0.001
            elif sigma == 0.05:
                assert abs(width - 0.246) < 0.01, "the behavior has changed: a narrow average"
            else:
                assert first > 0.3, "the behavior has changed: PostHocEMA forgets the start"
                assert sigma != 0.15 or abs(width - 0.316) < 0.01, "the behavior has changed: the width"

# (3)
for given in ({}, {"update_every": 1}):
    average = run(lambda n: EMA(n, inv_gamma=1, power=1, update_after_step=0, **given), 5000)
    mean, _, first = look(f"EMA, inv_gamma=1, power=1 {given or ''}", average)
    if given:
        assert abs(mean - 0.5) < 0.001 and first < 0.001
    else:
        assert mean < 0.15 and first > 0.45, "the behavior has changed: a simple average"
for given in ({"beta": 0.999}, {"beta": 0.999, "update_every": 1}, {"beta": 0.999**10}):
    average = run(lambda n: EMA(n, power=1, update_after_step=0, **given), 20_000)
    mean, _, _ = look(f"EMA, power=1, {given}", average)
    if given == {"beta": 0.999}:
        assert abs(20_000 * (1 - mean) - 8_600) < 100, "the behavior has changed: the age"
    else:
        assert abs(mean - 0.95) < 0.002


# (4)
class Masked(nn.Linear):
    def __init__(self):
        super().__init__(64, 64, bias=False)
        self.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.mask)


torch.manual_seed(0)
net = Masked()
average, torchs = EMA(net, update_after_step=100, update_every=1), AveragedModel(net)
net.mask.copy_(net.weight.abs() > net.weight.abs().median())
for _ in range(200):  # copies at first, averages then; the weights stay as they are
    average.update()
    torchs.update_parameters(net)
x = torch.randn(100, 64)
kept = [m.mask.float().mean().item() for m in (net, average.ema_model, torchs.module)]
off = ((average(x) - net(x)).norm() / net(x).norm()).item()
print(f"kept by the masks of the net, EMA and AveragedModel: {kept}; EMA's outputs differ by {off:.0%}, "
      f"its weights by {(average.ema_model.weight - net.weight).abs().max():g}")
assert kept == [0.5, 1, 0.5] and off > 0.2, "the behavior has changed: masks"
assert torch.allclose(average.ema_model.weight, net.weight) and torch.allclose(torchs(x), net(x), atol=1e-5)
PYTHON
