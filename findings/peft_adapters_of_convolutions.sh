#!/usr/bin/env bash
# peft 0.21.0 with torch 2.13.0: adapters of nn.Conv2d.
#
# Expected: a new adapter leaves the outputs of the net as they are, and merging it into the weight does, too. Where PEFT
# cannot do that it raises, as it does for groups, and for OFT with dilation.
# Seen: no error, and other outputs. (1) OFT on a kernel of more than one position: a new adapter multiplies the inputs
# by the number of windows they are in, 9 inside the image for 3×3 and 256 for the 16×16 of a ViT's patches, since it cuts
# the image into overlapping windows, rotates them (by 0, to begin with) and adds them up by fold. It trains so, and
# merging gives the rotation without the factor, another net.
# (2) padding_mode="circular", "reflect" and "replicate": the adapter pads with zeros. BOFT and HRA change the outputs from
# the start; LoRA, DoRA, LoHa and LoKr as soon as they are merged. (3) LoRA and DoRA on padding="same" with a dilation
# train a kernel without the dilation, and merging spreads it out.
# IA3 is right throughout, and all but OFT are with zeros around and no dilation. After merging, compare the two nets.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.0 transformers==5.24.0 torch==2.13.0 numpy
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import copy
import warnings
from importlib.metadata import version

import torch
from peft import BOFTConfig, HRAConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from torch import nn

warnings.filterwarnings("ignore")
ON = {"target_modules": ["conv"]}
ADAPTERS = {
    "LoRA": LoraConfig(r=4, **ON),
    "DoRA": LoraConfig(r=4, use_dora=True, **ON),
    "LoHa": LoHaConfig(r=4, **ON),
    "LoKr": LoKrConfig(r=4, **ON),
    "IA3": IA3Config(feedforward_modules=[], **ON),
    "HRA": HRAConfig(r=4, **ON),
    "BOFT": BOFTConfig(boft_block_size=4, **ON),
    "OFT": OFTConfig(r=0, oft_block_size=4, **ON),
}
ZEROS = {"kernel_size": 3, "padding": 1}
X = torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(0))


def error(found, right):
    return ((found - right).norm() / right.norm()).item()


@torch.no_grad()
def new_and_merged(adapter, convolution):
    """How far the outputs move by a new adapter, and by merging one whose numbers are no longer the first ones."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(8, 8, **convolution))
    model = get_peft_model(copy.deepcopy(net), copy.deepcopy(ADAPTERS[adapter])).eval()
    new = error(model(X), net(X))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter))
    before = model(X)
    return new, error(model.merge_and_unload()(X), before)


print(*(f"{name} {version(name)}" for name in ("peft", "torch")))
FAR, SAME = 0.01, 1e-5
wrong = {}
for adapter in ADAPTERS:
    for name, convolution in {
        "3×3, zeros": ZEROS,
        "circular": {**ZEROS, "padding_mode": "circular"},
        "reflect": {**ZEROS, "padding_mode": "reflect"},
        "replicate": {**ZEROS, "padding_mode": "replicate"},
        "same, dilation 2": {"kernel_size": 3, "padding": "same", "dilation": 2},
        "1×1": {"kernel_size": 1},
    }.items():
        try:
            new, merged = new_and_merged(adapter, convolution)
        except (RuntimeError, ValueError) as refused:
            print(f"{adapter:5} {name:17} {type(refused).__name__}")
            continue
        print(f"{adapter:5} {name:17} new {new:7.1e}  merged {merged:7.1e}")
        assert all(number < SAME or number > FAR for number in (new, merged))
        if max(new, merged) > FAR:
            wrong.setdefault(adapter, {})[name] = "".join(w for w, e in (("n", new), ("m", merged)) if e > FAR)
modes = ("circular", "reflect", "replicate")
merging, both = dict.fromkeys(modes, "m"), dict.fromkeys(modes, "nm")
assert wrong == {
    "LoRA": {**merging, "same, dilation 2": "m"},
    "DoRA": {**merging, "same, dilation 2": "m"},
    "LoHa": merging,
    "LoKr": merging,
    "HRA": both,
    "BOFT": both,
    "OFT": {"3×3, zeros": "nm", **both},
}, f"the behavior has changed: {wrong}"

for size, stride, padding in ((3, 1, 1), (16, 16, 0)):
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(8, 8, size, stride, padding, bias=False))
    ones = torch.ones(1, 8, 48, 48)
    with torch.no_grad():
        new = get_peft_model(copy.deepcopy(net), copy.deepcopy(ADAPTERS["OFT"]))(ones)
        ratio = (new / net(ones))[0, 0, new.shape[2] // 2, new.shape[3] // 2].item()
    print(f"a new OFT adapter on a kernel {size}×{size}, stride {stride}: outputs inside {ratio:.1f} times as large")
    assert abs(ratio / size**2 - 1) < 1e-3, "the behavior has changed: OFT"
PYTHON
