#!/usr/bin/env bash
# optimum-quanto 0.2.7 (the newest on PyPI) with torch 2.13.0: nets with quantized activations, saved and reloaded, and
# layers that are subclasses of nn.Linear and nn.Conv2d. As in its README: quantize, Calibration, freeze, requantize.
#
# Expected: the reloaded net is the one that was saved. A quantized activation is a tensor to the rest of the net: what
# has no quantized form is computed in float, and in place is as good as not. A layer that is not plain is left alone.
# Seen: none of it, and nothing warns. (1) What is done in place to a quantized activation is done to a float copy, and
# lost: nn.ReLU(inplace=True), y += x and y *= 3 do nothing. (2) Calibration, by default (streamline=True), switches the
# quantization of outputs off, for all layers, also where a relu follows that could take them. So (1) stays hidden; but
# neither state_dict nor quantization_map know of the switch, and requantize leaves it on. A CNN with residual blocks
# and in-place ReLU has 100% as it is saved, and 51% reloaded. Even before, its error is ten times that of the same net
# with ReLUs that are not in place: the first batch of the calibration went through without any.
# (3) In the reloaded net, or with streamline=False, -y leaves the sign to what lies below the range and was cut off
# there, since -128 has no negative in int8; relu(-1 * y) is -relu(y); torch.where(mask, y, -inf) gives the masked ones
# the lowest number of the range, and tokens that are masked get 19% of the attention; softmax rounds to 1/127, so 256
# equal weights are 0 each. (4) Calibration(momentum=...) is for the outputs, which are not quantized then: inputs take
# 0.9, whatever it is. (5) A subclass of nn.Linear or nn.Conv2d is replaced by a layer that calls linear or conv2d:
# the mask of an autoregressive layer is gone, and so is the standardization of weights, with float activations, too.
# The README has "Linear" and "Conv2d" as what is quantized, and a momentum. Of (2), issue 336 (closed) asks why outputs
# are not quantized after a calibration; a search for issues found none of the others.
# What works: nn.ReLU(), y = y + x, 0 - y, masked_fill; exclude= for the subclasses; disable_output_quantization() of
# each layer before the calibration, and of each layer of the reloaded net, which then is the saved one bit for bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optimum-quanto==0.2.7 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import math
from importlib.metadata import version

import torch
from optimum.quanto import Calibration, freeze, qint8, quantization_map, quantize, requantize
from optimum.quanto.nn import QModuleMixin
from torch import nn
from torch.nn.functional import cross_entropy, linear

torch.set_num_threads(2)


def gratings(count, seed):
    """Stripes of any phase, across or upright: a net without ReLU cannot tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    phases = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    stripes = torch.cos(math.pi / 2 * torch.arange(8.0) + phases).expand(count, 8, 8)
    images = torch.where(labels[:, None, None] == 1, stripes, stripes.mT)[:, None]
    return images + 0.3 * torch.randn(images.shape, generator=generator), labels


class Block(nn.Module):
    """A residual block, as in torchvision, without its batch norms."""

    def __init__(self, inplace):
        super().__init__()
        self.conv, self.relu, self.inplace = nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(inplace), inplace

    def forward(self, x):
        y = self.conv(x)
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.relu(y)


class Then(nn.Module):
    """A linear layer, and a function of its outputs."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *inputs):
        return self.function(self.layer(inputs[0]), *inputs[1:])


class MaskedLinear(nn.Linear):
    """Weights only below the diagonal, as in autoregressive nets."""

    def forward(self, x):
        return linear(x, self.weight.tril(), self.bias)


class StandardizedConv2d(nn.Conv2d):
    """A convolution with standardized weights, as in BiT and NF-ResNet."""

    def forward(self, x):
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / deviation, self.bias)


def cnn(inplace):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(inplace), Block(inplace),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(inplace), nn.Linear(32, 2))


def plain(y):
    return y.dequantize() if isinstance(y, torch.Tensor) and type(y) is not torch.Tensor else y


def off(y, right):
    return ((plain(y) - right).norm() / right.norm()).item()


def layers(net):
    return [module for module in net.modules() if isinstance(module, QModuleMixin)]


def quantized(net, batches, early=False, **calibration):
    """The README's way: quantize, calibrate, freeze."""
    net = copy.deepcopy(net)
    quantize(net, weights=qint8, activations=qint8)
    for layer in layers(net) if early else ():
        layer.disable_output_quantization()
    with torch.no_grad(), Calibration(**calibration):
        for batch in batches:
            net(*batch) if isinstance(batch, tuple) else net(batch)
    freeze(net)
    return net


def reloaded(net, new):
    """The README's way: a new net, requantize."""
    requantize(new, copy.deepcopy(net.state_dict()), quantization_map(net))
    return new


def quantizes_outputs(net):
    return sum(len(module._forward_hooks) for module in layers(net))


def saved_and_reloaded(make, *batches, **calibration):
    saved = quantized(make(), batches, **calibration)
    return saved, reloaded(saved, make())


print(*(f"{name} {version(name)}" for name in ("optimum-quanto", "torch")))
images, labels = gratings(512, 1)
test_images, test_labels = gratings(512, 2)

print("A CNN that is trained, quantized, calibrated, frozen, saved and reloaded")
for inplace in (False, True):
    float_net = cnn(inplace)
    optimizer = torch.optim.Adam(float_net.parameters(), 0.01)
    for step in range(100):
        optimizer.zero_grad()
        cross_entropy(float_net(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        right = float_net(test_images)
        saved = quantized(float_net, images.split(64))
        again = reloaded(saved, cnn(inplace))
        both = quantized(float_net, images.split(64), streamline=False)
        early = quantized(float_net, images.split(64), early=True)
        mended = reloaded(saved, cnn(inplace))
        for layer in layers(mended):
            layer.disable_output_quantization()
        errors, scores = {}, {}
        for name, net in ("float", float_net), ("saved", saved), ("reloaded", again), ("mended", mended), \
                ("streamline=False", both), ("early", early):
            out = plain(net(test_images))
            errors[name], scores[name] = off(out, right), (out.argmax(1) == test_labels).float().mean().item()
    print(f"  in place: {inplace!s:5}", *(f"{n} {scores[n]:.1%} right, {errors[n]:.1%} off;" for n in errors))
    hooks = [quantizes_outputs(net) for net in (saved, again, both)]
    assert hooks == [0, 4, 4], "the behavior has changed: which layers quantize their outputs"
    assert scores["float"] > 0.98 and scores["saved"] > 0.98 and errors["saved"] < (0.15 if inplace else 0.01)
    assert torch.equal(plain(mended(test_images)), plain(saved(test_images)))
    assert errors["early"] < 0.01
    if inplace:
        assert errors["saved"] > 5 * errors["early"], "the behavior has changed: the first batch of the calibration"
        assert scores["reloaded"] < 0.65 and scores["streamline=False"] < 0.65, "the behavior has changed: ReLU works"
        assert errors["reloaded"] > 0.5 and errors["streamline=False"] > 0.5
    else:
        assert scores["reloaded"] > 0.98 and scores["streamline=False"] > 0.98 and errors["reloaded"] < 0.06

print("Functions of the outputs of a layer, saved (outputs not quantized) and reloaded")
torch.manual_seed(3)
x = torch.randn(256, 16)
weight = torch.linalg.qr(torch.randn(16, 16)).Q


def layer():
    new = nn.Linear(16, 16, bias=False)
    new.weight = nn.Parameter(weight.clone())
    return new


FUNCTIONS = {
    "relu_": (lambda y: torch.relu_(y), False), "relu": (lambda y: torch.relu(y), True),
    "y += 1": (lambda y: y.add_(1.0), False), "y + 1": (lambda y: y + 1.0, True),
    "y *= 3": (lambda y: y.mul_(3.0), False), "y * 3": (lambda y: y * 3.0, True),
    "relu(y * -1)": (lambda y: torch.relu(y * -1.0), False), "relu(-y)": (lambda y: torch.relu(-y), True),
}
for name, (function, works) in FUNCTIONS.items():
    with torch.no_grad():
        right = function(linear(x, weight))
        saved, again = saved_and_reloaded(lambda: Then(layer(), function), x)
        errors = off(saved(x), right), off(again(x), right)
    print(f"  {name:12}: off by {errors[0]:.1%} and {errors[1]:.1%}")
    assert errors[0] < 0.02
    if name == "relu(y * -1)":
        assert off(again(x), -torch.relu(linear(x, weight))) < 0.02, "the behavior has changed: relu(y * -1)"
    assert (errors[1] < 0.03) == works and (errors[1] > 0.3) == (not works), f"the behavior has changed: {name}"

print("Negation of what lies beyond the range that was calibrated, which saturates")
for name, function in ("-y", lambda y: -y), ("0 - y", lambda y: 0 - y):
    with torch.no_grad():
        saved, again = saved_and_reloaded(lambda: Then(layer(), function), x)
        right, out = saved(2 * x), plain(again(2 * x))
        step = again.layer.output_scale
    beyond, within = right > 128 * step, (right.abs() > step) & (right.abs() < 127 * step)
    flips = [(out.sign() != right.sign())[where].float().mean().item() for where in (beyond, within)]
    print(f"  {name:5}: the wrong sign for {flips[0]:.0%} of {int(beyond.sum())} beyond, {flips[1]:.0%} within")
    assert beyond.sum() > 20 and flips[1] == 0
    assert flips[0] == (1 if name == "-y" else 0), "the behavior has changed: negation"

print("Attention weights from a layer of scores")
tokens, keep = torch.randn(256, 8, 16), torch.arange(8).expand(256, 8) < 4
by_where = lambda y, k: torch.where(k, y[..., 0], torch.tensor(-torch.inf)).softmax(-1)  # noqa: E731
by_fill = lambda y, k: y[..., 0].masked_fill(~k, -torch.inf).softmax(-1)  # noqa: E731
for name, function in ("torch.where", by_where), ("masked_fill", by_fill):
    with torch.no_grad():
        scorer = nn.Linear(16, 1)
        scorer.weight.fill_(0.1)
        saved, again = saved_and_reloaded(lambda: Then(copy.deepcopy(scorer), function), (tokens, keep))
        shares = [plain(net(tokens, keep))[~keep].sum().item() / 256 for net in (saved, again)]
    print(f"  {name:11}: masked tokens have {shares[0]:.1%} saved, {shares[1]:.1%} reloaded")
    assert shares[0] == 0 and (shares[1] > 0.1) == (name == "torch.where"), "the behavior has changed: masks"
for count in (100, 256, 1024):
    with torch.no_grad():
        scores = lambda y: y[..., 0].softmax(-1)  # noqa: E731
        saved, again = saved_and_reloaded(lambda: Then(copy.deepcopy(scorer), scores), tokens)
        same = torch.randn(4, 1, 16).expand(4, count, 16)
        sums = [plain(net(same)).sum(-1).mean().item() for net in (saved, again)]
    print(f"  softmax over {count} equal scores sums up to {sums[0]:.3f} saved, {sums[1]:.3f} reloaded")
    assert abs(sums[0] - 1) < 1e-4
    assert (sums[1] == 0) if count > 254 else (0.7 < sums[1] < 0.8), "the behavior has changed: softmax"

print("Calibration(momentum=...)")
scales = {}
for momentum in (0.0, 0.9, 0.999):
    net = quantized(Then(layer(), torch.relu), [scale * x for scale in (1, 2, 3, 4)], momentum=momentum)
    scales[momentum] = net.layer.input_scale.item(), net.layer.output_scale.item()
    print(f"  {momentum}: scale of inputs {scales[momentum][0]:.4f}, of outputs {scales[momentum][1]:.4f}")
assert len({s for s, _ in scales.values()}) == 1, "the behavior has changed: momentum of inputs"
assert len({s for _, s in scales.values()}) == 3

print("Subclasses, weights in 8 bits, activations in float")
for name, make, batch in (
    ("MaskedLinear", lambda: MaskedLinear(16, 16), x),
    ("StandardizedConv2d", lambda: StandardizedConv2d(1, 8, 3), images),
    ("nn.Linear", lambda: nn.Linear(16, 16), x),
):
    torch.manual_seed(4)
    net = nn.Sequential(make())
    right = net(batch).detach()
    kept, converted = copy.deepcopy(net), copy.deepcopy(net)
    quantize(converted, weights=qint8)
    freeze(converted)
    quantize(kept, weights=qint8, exclude="0")
    with torch.no_grad():
        error = off(converted(batch), right)
        print(f"  {name} becomes {type(converted[0]).__name__}, off by {error:.1%}")
        assert torch.equal(kept(batch), right)
    assert (error < 0.01) == (name == "nn.Linear") and (error > 0.3) == (name != "nn.Linear"), \
        "the behavior has changed: subclasses"
PYTHON
