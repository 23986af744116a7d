#!/usr/bin/env bash
# coremltools 9.0 with torch 2.13.0: LayerwiseCompressor of coremltools.optimize.torch, "gptq" and "sparse_gpt".
#
# Expected: symmetric 8-bit quantization is off by some 0.2%, and smaller blocks, each with its own scale, are no worse.
# SparseGPT prunes, and quantizes where it is asked to, as documented ("weight_dtype ... Defaults to torch.float32,
# which corresponds to no quantization").
# Seen: no error, and (1) a row or block without a negative weight is cut off at half of its largest weight: its scale
# is that of [0, max], and its zero point the middle of the 256 numbers. Symmetric is the default. A layer of positive
# weights (a monotone net, a non-negative factorization) is off by 28% at 8 bits, with the sign reversed by 0.13%. In
# torch's own random weights each 16th block of 4 is positive. Outputs are off by 0.15% without blocks, by 5% in blocks
# of 4 and by 14% in blocks of 2: smaller is worse, and 8 bits in blocks of 4 are worse than 4 bits without blocks.
# (2) "sparse_gpt" quantizes by default, to uint8. At 50% it is off by 0.28 where float32 is by 0.21: the range is that
# of the weights before pruning, and those that have to make up for the others are cut off at its ends. (3) Its
# quantization_granularity="per_block", documented along with a block_size that it does not have, is "per_channel" bit
# for bit. (4) n_m_ratio=(2, 4) of a convolution counts along the positions of the kernel in "sparse_gpt", and along the
# input channels in MagnitudePruner of the same package; neither's result is 2:4 to the other.
# AutoGPTQ has the rule of (1), too, as issue 293 (open); for coremltools we found nothing. Right are
# quantization_scheme="affine" and PostTrainingQuantizer; pass weight_dtype="float32" to prune without quantizing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check coremltools==9.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import copy
import logging
from importlib.metadata import version

import torch
from coremltools.optimize.torch.layerwise_compression import LayerwiseCompressor, LayerwiseCompressorConfig
from coremltools.optimize.torch.layerwise_compression import ModuleSparseGPTConfig
from coremltools.optimize.torch.pruning import MagnitudePruner, MagnitudePrunerConfig
from coremltools.optimize.torch.quantization import PostTrainingQuantizer, PostTrainingQuantizerConfig
from torch import nn

logging.disable(logging.INFO)
print(*(f"{name} {version(name)}" for name in ("coremltools", "torch")))
torch.manual_seed(0)
X = torch.randn(64, 256)


def compressed(net, inputs=X, **config):
    config = {"global_config": config, "input_cacher": "default", "calibration_nsamples": 8}
    compressor = LayerwiseCompressor(copy.deepcopy(net), LayerwiseCompressorConfig.from_dict(config))
    return compressor.compress(list(inputs.split(8)), device="cpu")


def error(net, other):
    return ((net(X) - other(X)).norm() / net(X).norm()).item()


def linear(change=lambda weight: weight):
    net = nn.Sequential(nn.Linear(256, 256, bias=False))
    net[0].weight.data = change(net[0].weight.data)
    return net


# (1)
plain, positive, negative = linear(), linear(torch.abs), linear(lambda weight: -weight.abs())
for name, net in (("positive", positive), ("negative", negative)):
    for scheme in ("symmetric", "affine"):
        for granularity in ("per_channel", "per_tensor"):
            made = compressed(net, algorithm="gptq", quantization_scheme=scheme, granularity=granularity)
            off, kept = error(net, made), (made[0].weight.abs().max() / net[0].weight.abs().max()).item()
            print(f"gptq, 8 bits, {name} weights, {scheme:9} {granularity:11}: off by {off:.2%}, largest {kept:.2f}")
            if (name, scheme) == ("positive", "symmetric"):
                assert off > 0.25 and 0.49 < kept < 0.51, "the behavior has changed: positive weights"
            else:
                assert off < 0.005 and 0.99 < kept < 1.01
assert error(positive, compressed(positive, algorithm="gptq")) > 0.25, "the behavior has changed: the default scheme"
scheme = {"weight_dtype": "int8", "quantization_scheme": "symmetric", "granularity": "per_channel"}
config = PostTrainingQuantizerConfig.from_dict({"global_config": scheme})
assert error(positive, PostTrainingQuantizer(copy.deepcopy(positive), config).compress()) < 0.005

for size, share in ((4, 1 / 16), (2, 1 / 4)):
    found = (plain[0].weight.reshape(-1, size) > 0).all(1).float().mean().item()
    print(f"blocks of {size} without a negative weight: {found:.1%}")
    assert abs(found / share - 1) < 0.05
errors = {}
for scheme in ("symmetric", "affine"):
    for dtype in ("uint8", "uint4"):
        for block in (None, 16, 8, 4, 2):
            blocks = {} if block is None else {"granularity": "per_block", "block_size": block}
            made = compressed(plain, algorithm="gptq", weight_dtype=dtype, quantization_scheme=scheme, **blocks)
            errors[scheme, dtype, block] = error(plain, made)
        found = ", ".join(f"{errors[scheme, dtype, block]:.2%}" for block in (None, 16, 8, 4, 2))
        print(f"gptq, torch's weights, {scheme:9} {dtype}: off by {found} without blocks and in blocks of 16, 8, 4, 2")
assert errors["symmetric", "uint8", None] < 0.002
assert errors["symmetric", "uint8", 8] > 3 * errors["symmetric", "uint8", None], "the behavior has changed: 8"
assert errors["symmetric", "uint8", 4] > errors["symmetric", "uint4", None], "the behavior has changed: 4"
assert errors["symmetric", "uint8", 2] > 0.1, "the behavior has changed: 2"
affine = [errors["affine", "uint8", block] for block in (None, 8, 4, 2)]
assert affine == sorted(affine, reverse=True)

# (2) and (3)
weights = {}
for name, given in (
    ("by default", {}), ("float32", {"weight_dtype": "float32"}), ("uint8", {"weight_dtype": "uint8"}),
    ("per_block", {"weight_dtype": "uint8", "quantization_granularity": "per_block"}),
):
    made = compressed(plain, algorithm="sparse_gpt", **given)
    weights[name], off = made[0].weight.detach(), error(plain, made)
    steps = torch.cat([row.unique().diff() for row in weights[name][:1]])
    levels = max(len(row.unique()) for row in weights[name])
    print(f"sparse_gpt, {name:10}: {(weights[name] == 0).float().mean():.1%} zeros, at most {levels} numbers in a row, "
          f"smallest step {steps.min():.1e}, off by {off:.3f}")
    wide = (weights[name].abs().max() / plain[0].weight.abs().max()).item()  # as against the weights before pruning
    if name == "float32":
        assert steps.min() < 1e-5 and off < 0.22 and wide > 1.3
    else:
        assert steps.min() > 1e-4 and off > 0.27 and wide < 1.01, "the behavior has changed: sparse_gpt quantizes"
assert not hasattr(ModuleSparseGPTConfig(), "block_size"), "the behavior has changed: block_size"
assert torch.equal(weights["by default"], weights["uint8"]), "the behavior has changed: the default"
assert torch.equal(weights["per_block"], weights["uint8"]), "the behavior has changed: per_block"


# (4)
def shares(weight):
    """Fours with two zeros, along the input channels and along the rows of the flattened weight."""
    fours = weight.movedim(1, -1).reshape(-1, 4), weight.flatten(1).reshape(-1, 4)
    return [((four == 0).sum(1) == 2).float().mean().item() for four in fours]


convolution = nn.Sequential(nn.Conv2d(16, 8, 3, bias=False))
images = torch.randn(64, 16, 10, 10)
sparse = compressed(convolution, images, algorithm="sparse_gpt", n_m_ratio=(2, 4), weight_dtype="float32")
pruner = MagnitudePruner(
    copy.deepcopy(convolution), MagnitudePrunerConfig.from_dict({"global_config": {"n_m_ratio": (2, 4)}})
)
pruner.prepare()
pruner.step()
by_magnitude = pruner.finalize()
for name, net, expected in (("sparse_gpt", sparse, (False, True)), ("MagnitudePruner", by_magnitude, (True, False))):
    found = shares(net[0].weight.detach())
    print(f"{name}: {found[0]:.0%} of the fours along input channels have two zeros, {found[1]:.0%} along the rest")
    assert tuple(share == 1 for share in found) == expected and min(found) < 0.6, "the behavior has changed: 2:4"
PYTHON
