#!/usr/bin/env bash
# torch 2.13.0: torch.utils.flop_counter.FlopCounterMode on the backward pass of a grouped or depthwise convolution.
#
# Expected: backward is twice forward, one product for the input and one for the weights, whatever the groups: each
# multiplication of the forward pass is used once in each.
# Seen: the gradient of the weights is counted as if groups were 1. With g groups backward is 1 + g times forward: 65
# times for a depthwise layer of 64 channels. Forward is counted right, so a look at inference does not tell.
# Utilization (MFU) of nets as MobileNet or ConvNeXt in training comes out many times too high, and the depthwise layers
# look like the ones that cost most.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CHANNELS = 64
for convolution in (nn.Conv2d, nn.ConvTranspose2d):
    for groups in (1, 4, CHANNELS):
        layer = convolution(CHANNELS, CHANNELS, 3, padding=1, groups=groups, bias=False)
        x = torch.randn(2, CHANNELS, 8, 8, requires_grad=True)
        with FlopCounterMode(display=False) as forward:
            y = layer(x)
        with FlopCounterMode(display=False) as backward:
            y.backward(torch.randn_like(y))
        true = 2 * 2 * 8 * 8 * layer.weight.numel()  # padded places included, as the counter does
        ratio = backward.get_total_flops() / forward.get_total_flops()
        print(f"{convolution.__name__}, {groups} groups: {forward.get_total_flops()} forward, backward x {ratio:.0f}")
        assert forward.get_total_flops() == true
        assert layer.weight.grad.shape == layer.weight.shape  # what backward computes: as many numbers as the weights
        assert ratio == 1 + groups, "the behavior has changed"
print("torch", torch.__version__)
PYTHON
