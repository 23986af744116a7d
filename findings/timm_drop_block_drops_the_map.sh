#!/usr/bin/env bash
# timm 1.0.31 with torch 2.13.0 (and torchvision 0.28.0): DropBlock2d, and drop_block_rate of timm's nets.
#
# Expected: drop_prob=0.1 drops a tenth of a feature map, in blocks. That is what the paper's rate of centers, gamma, is
# for, which timm computes: drop_prob / block_size² · H·W / ((H - block_size + 1) (W - block_size + 1)).
# Seen: the more, the smaller the map is. The last factor makes up for centers that are only drawn where a whole block
# fits into the map; timm draws them everywhere. At 0.1 and its default, block_size=7, it drops 11% of a map of 56×56,
# 21% of 14×14, 62% of 8×8, and 93% of 7×7, the last stage of most nets at 224 pixels. What is left is multiplied by 13,
# so the mean stays as it was. Half of the maps are zero altogether. torchvision.ops.DropBlock2d drops a tenth of all.
# drop_block_rate=0.1 of timm's ResNets has blocks of 3 in the last stage: 15% at 224 pixels, 19% at 160, 25% at 128.
# So the dropout that was asked for rises by itself with a lower resolution, and in deeper stages. Below, a net learns
# digits as well with torchvision's layer as without one, and with timm's, at the same setting, it has 10% fewer right.
# Not documented (drop_prob: "Probability of dropping a block"); a search of timm's issues found nothing. block_size=1,
# and maps that are many times larger than the blocks, are right; else take torchvision's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.13.0 torchvision==0.28.0 \
    scikit-learn==1.9.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch

try:
    import torchvision
except RuntimeError:  # beside a torch for CPUs, a torchvision for GPUs lacks its operators, which nothing here calls
    for name in ("register_fake", "register_autograd"):
        setattr(torch.library, name, lambda *_, **__: lambda function: function)
    import torchvision

import timm
from sklearn.datasets import load_digits
from timm.layers import DropBlock2d
from torch import nn

torch.set_num_threads(2)
P = 0.1


def dropped(layer, side, maps=3000):
    """Share of zeros, and the largest number, in maps of ones."""
    torch.manual_seed(0)
    out = layer.train()(torch.ones(maps, 1, side, side))
    return (out == 0).double().mean().item(), out.max().item(), (out == 0).flatten(1).all(1).double().mean().item()


def share(side, block):
    """What is dropped if centers are drawn everywhere at the paper's rate."""
    gamma = P * side**2 / block**2 / (side - block + 1) ** 2
    reach = [min(i, block // 2) + min(side - 1 - i, block // 2) + 1 for i in range(side)]
    return sum(1 - (1 - gamma) ** (a * b) for a in reach for b in reach) / side**2


print(*(f"{name} {version(name)}" for name in ("timm", "torch", "torchvision")))
for side, block, at_least in (
    (56, 7, 0.105), (28, 7, 0.12), (14, 7, 0.19), (8, 7, 0.58), (7, 7, 0.9), (7, 5, 0.28), (7, 3, 0.13), (7, 1, 0),
):
    maps = 3000 if side < 20 else 1000
    found, largest, empty = dropped(DropBlock2d(P, block), side, maps)
    other = dropped(torchvision.ops.DropBlock2d(P, block), side, maps)[0]
    print(f"maps of {side:2}×{side:<2}, blocks of {block}: timm drops {found:5.1%}, what is left is {largest:5.2f} "
          f"times as large, {empty:.0%} of the maps are empty; torchvision drops {other:5.1%}")
    assert abs(other - P) < 0.012
    assert abs(found - share(side, block)) < 0.012, "the behavior has changed: another share"
    assert abs(largest * (1 - found) - 1) < 1e-3
    if block == 1:
        assert abs(found - P) < 0.01
    else:
        assert found > at_least, "the behavior has changed: drop_prob is what is dropped"
assert dropped(DropBlock2d(P), 7) == dropped(DropBlock2d(P, 7), 7)  # 7 is the default
assert dropped(DropBlock2d(P), 7)[1] > 12 and dropped(DropBlock2d(P), 7)[2] > 0.4, "the behavior has changed: 7×7"

net = timm.create_model("resnet50", drop_block_rate=P)
last = [(m.drop_prob, m.block_size, m.gamma_scale) for n, m in net.named_modules() if n == "layer4.2.drop_block"]
assert last == [(P, 3, 1.0)]
for pixels, least in ((224, 0.14), (160, 0.17), (128, 0.22)):
    found = dropped(net.layer4[2].drop_block, pixels // 32)[0]
    print(f"last stage of a ResNet with drop_block_rate={P}, at {pixels} pixels: drops {found:.1%}")
    assert found > least, "the behavior has changed: the ResNet drops what was asked for"

x, y = load_digits(return_X_y=True)
x = nn.functional.interpolate(torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16, size=14, mode="bilinear")
y = torch.tensor(y)
train = torch.arange(len(x)) % 2 == 0
accuracy = {}
for name, layer in {
    "no DropBlock": nn.Identity(),
    "torchvision's": torchvision.ops.DropBlock2d(P, 7),
    "timm's": DropBlock2d(P, 7),
}.items():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), layer,
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(6):
        for batch in torch.randperm(int(train.sum())).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[train][batch]), y[train][batch]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        accuracy[name] = (net(x[~train]).argmax(1) == y[~train]).double().mean().item()
    print(f"digits with {name:13} (drop_prob {P}, maps of 7×7, blocks of 7): {accuracy[name]:.1%} of new ones right")
assert accuracy["no DropBlock"] > 0.95 and accuracy["torchvision's"] > 0.95
assert accuracy["timm's"] < accuracy["torchvision's"] - 0.04, "the behavior has changed: it learns as well"
PYTHON
