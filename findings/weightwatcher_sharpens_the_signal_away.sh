#!/usr/bin/env bash
# weightwatcher 0.7.7 with torch 2.13.0: SVDSharpness, SVDSmoothing, and the ranks and norms of analyze().
#
# Expected: SVDSharpness "can be used to remove Correlation Traps", which are what still sticks out of the spectrum of a
# weight matrix once its entries are shuffled; SVDSmoothing keeps "(percent)% of the eigenvalues"; ranks are those of
# NumPy, and norms those of W. All of it as the README and the docstrings have it.
# Seen: (1) SVDSharpness counts the spikes of the shuffled matrix, and takes off as many of the largest singular values
# of the matrix itself. If what has been learned is the larger one, that is gone: below, a net of 95% has 51%
# afterwards, which is chance, and the trap, an entry of 4, is there still. The weights are float64 then, and the net of
# float32 raises. (2) percent of SVDSmoothing does nothing by default: 0.1, 0.5 and 0.9 keep as many values. It is read
# with method="svd". The model that comes back is the one given, so the two cannot be compared. (3) matrix_rank and
# rank_loss ask for the rounding errors of float64 of weights in float32: a product of two factors of rank 20, as a
# merged LoRA or a truncated layer, has matrix_rank 200 and rank_loss 0. (4) norm and spectral_norm of a Conv2d are
# halved by default, where log_norm is documented as that of the squared norm of W: the same matrix as a Linear layer
# and as a convolution of size 1 differs by log10(2) in log_norm and log_spectral_norm, and by alpha times that in
# alpha_weighted, so averages of a CNN and of a Transformer are on two scales.
# We found no issue of these; a remove_traps was merged in the repository in 2026, without a release on PyPI. Right are
# conv2d_norm=False, method="svd", and the number of columns less weak_rank_loss, with a tolerance that fits. A trap is
# off if the singular value that it makes up is subtracted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check weightwatcher==0.7.7 torch==2.13.0 numpy
cd "$folder"
OMP_NUM_THREADS=2 MPLBACKEND=Agg MPLCONFIGDIR="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy
import logging
import math
from importlib.metadata import version

import numpy as np
import torch
from torch import nn
from weightwatcher import WeightWatcher

logging.disable(logging.CRITICAL)
print(*(f"{name} {version(name)}" for name in ("weightwatcher", "torch")))
torch.manual_seed(0)
torch.set_num_threads(2)


def watcher(model):
    np.random.seed(0)
    return WeightWatcher(model=model)


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def traps(weight):
    """How many spikes the shuffled matrix has."""
    return int(watcher(linear(weight)).analyze(randomize=True)["rand_num_spikes"].iloc[0])


# (1) A net that tells on which side of a plane points are
INPUTS, HIDDEN, ENTRY, SIZE = 200, 300, (7, 9), 4
side = torch.randn(INPUTS)
x, test = torch.randn(2, 4000, INPUTS)
y, answers = ((data @ side > 0).long() for data in (x, test))
net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
optimizer = torch.optim.Adam(net.parameters(), 0.003)
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def accuracy(model):
    return (copy.deepcopy(model).float()(test).argmax(1) == answers).float().mean().item()


def largest(weight):
    return [round(value, 2) for value in torch.linalg.svdvals(weight.float())[:3].tolist()]


learned = accuracy(net)
assert traps(net[0].weight.data) == 0 and learned > 0.9
with torch.no_grad():
    net[0].weight[ENTRY] = SIZE
weight = net[0].weight.data.clone()
assert traps(weight) == 1 and abs(accuracy(net) - learned) < 0.01
sharpened = watcher(net).SVDSharpness(model=copy.deepcopy(net))
left = sharpened[0].weight.detach()
print(f"SVDSharpness: accuracy {accuracy(net):.3f} and then {accuracy(sharpened):.3f}; largest singular values "
      f"{largest(weight)} and {largest(left)}; traps {traps(weight)} and {traps(left.float())}; "
      f"the entry {weight[ENTRY]:.2f} and {left[ENTRY]:.2f}; {weight.dtype} and {left.dtype}")
assert accuracy(sharpened) < 0.6, "the behavior has changed: what was learned is kept"
assert traps(left.float()) == 1 and left[ENTRY] > 0.9 * SIZE, "the behavior has changed: the trap is gone"
u, s, v = torch.linalg.svd(weight, full_matrices=False)
assert torch.allclose(left.float(), weight - s[0] * torch.outer(u[:, 0], v[0]), atol=1e-4)  # the largest is off
assert left.dtype == torch.float64, "the behavior has changed: the dtype is kept"
try:
    sharpened(test)
    raise AssertionError("the behavior has changed: the net takes float32")
except RuntimeError as error:
    assert "dtype" in str(error)
mended = copy.deepcopy(net)
mended[0].weight.data -= s[1] * torch.outer(u[:, 1], v[1])
print(f"without the second singular value: accuracy {accuracy(mended):.3f}, traps {traps(mended[0].weight.data)}")
assert accuracy(mended) > 0.9 and traps(mended[0].weight.data) == 0

# (2)
ROWS, COLUMNS = 300, 200
noise = torch.randn(ROWS, COLUMNS) / math.sqrt(ROWS)
kept = {}
for method in (None, "svd"):
    for percent in (0.1, 0.5, 0.9):
        model = nn.Sequential(linear(noise))
        options = {} if method is None else {"method": method}
        smoothed = watcher(model).SVDSmoothing(model=model, percent=percent, **options)
        assert smoothed is model, "the behavior has changed: a copy is smoothed"
        kept[method, percent] = torch.linalg.matrix_rank(smoothed[0].weight.float()).item()
print("SVDSmoothing keeps, by method and percent:", kept)
assert len({count for (method, _), count in kept.items() if method is None}) == 1, "the behavior has changed: percent"
assert [kept["svd", percent] for percent in (0.1, 0.5, 0.9)] == [20, 100, 180]

# (3)
low = torch.randn(ROWS, 20) @ torch.randn(20, COLUMNS) / 50
for weight in (low, noise):
    found = watcher(nn.Sequential(linear(weight))).analyze().iloc[0]
    true = np.linalg.matrix_rank(weight.numpy())
    print(f"rank {true}: matrix_rank {found['matrix_rank']}, rank_loss {found['rank_loss']}, "
          f"weak_rank_loss {found['weak_rank_loss']}")
    assert found["matrix_rank"] == COLUMNS and found["rank_loss"] == 0, "the behavior has changed: ranks"
    assert COLUMNS - found["weak_rank_loss"] == true == (20 if weight is low else COLUMNS)

# (4)
convolution = nn.Conv2d(COLUMNS, ROWS, 1, bias=False)
convolution.weight.data = noise[:, :, None, None].clone()
square, top = noise.square().sum().item(), torch.linalg.svdvals(noise)[0].item() ** 2
for options, factor in ({}, 0.5), ({"conv2d_norm": False}, 1):
    dense, conv = (watcher(nn.Sequential(layer)).analyze(**options).iloc[0] for layer in (linear(noise), convolution))
    for name, true in (("norm", square), ("spectral_norm", top)):
        print(f"{name} {options or ''}: {true:.3f}; of a Linear layer {dense[name]:.3f}, of a Conv2d {conv[name]:.3f}")
        assert math.isclose(dense[name], true, rel_tol=1e-4)
        assert math.isclose(conv[name], factor * true, rel_tol=1e-4), "the behavior has changed: " + name
        assert math.isclose(conv["log_" + name], math.log10(factor * true), abs_tol=1e-3)
    assert math.isclose(conv["alpha"], dense["alpha"], rel_tol=1e-4)
    shift = conv["alpha"] * math.log10(factor)
    assert math.isclose(conv["alpha_weighted"] - dense["alpha_weighted"], shift, abs_tol=1e-3)
PYTHON
