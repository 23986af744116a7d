#!/usr/bin/env bash
# torchao 0.18.0 with torch 2.13.0: torchao.sparsity.WandaSparsifier.
#
# Expected: it removes the weights with the smallest |weight| · ‖input channel‖, as in the paper and as documented ("the
# product of the input activation norm and the weight magnitude"); and 2:4 stays 2:4, however often step() is called.
# Seen: (1) it multiplies by the square of the norm. The observer, which "computes the L2 norm of each channel", adds up
# squares, and nobody takes the root. So a channel that is 10 times as large counts 100 times as much. The mask is bit
# for bit that of |weight| · norm². Below, with channels whose sizes are log-normal and 50% sparsity, a tenth of the
# mask is not Wanda's, 57 input channels of 256 are cut off altogether in place of 13, and the outputs are 17% farther
# off. And a scale that moves from the weight into the layer before (a gain of LayerNorm), which leaves Wanda's mask
# alone, changes this one.
# (2) step() only ever removes: the mask is never set back to 1. With a step after each batch, as the statistics come
# in, an eighth of the groups of four is left with one number or none.
# Nothing warns, and after one step the sparsity is as asked for. It beats pruning by magnitude, so it passes for Wanda
# in a comparison. The documentation of both classes says norm; a search for issues found none.
# Calibrate on everything, then module.activation_post_process.norm.sqrt_(), then step() once: that is Wanda.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torchao==0.18.0 torch==2.13.0 numpy
OMP_NUM_THREADS=2 "$folder/venv/bin/python" - <<'PYTHON'
import copy
import logging
import warnings
from importlib.metadata import version

import torch
from torch import nn

warnings.simplefilter("ignore")  # about deprecated modules of torch, and that 2:4 means 50%
logging.disable(logging.WARNING)  # about kernels for GPUs
from torchao.sparsity import PerChannelNormObserver, WandaSparsifier

print(*(f"{name} {version(name)}" for name in ("torchao", "torch")))
torch.manual_seed(0)
INPUTS, OUTPUTS, BATCHES = 256, 128, 8
X = torch.randn(BATCHES * 32, INPUTS) * torch.exp(torch.randn(INPUTS))
LAYER = nn.Linear(INPUTS, OUTPUTS)
nn.init.normal_(LAYER.weight, std=1 / 16)


def nothing(layer):
    pass


def root(layer):
    layer.activation_post_process.norm.sqrt_()


def all_ones(layer):
    layer.parametrizations.weight[0].mask.fill_(1)


def pruned(group, x=X, w=LAYER.weight, steps=1, before_step=nothing):
    """The weight without half of it (or half of each group of weights), after calibration on eight batches."""
    net = nn.Sequential(copy.deepcopy(LAYER))
    net[0].weight.data.copy_(w)
    sparsifier = WandaSparsifier(0.5, semi_structured_block_size=group)
    sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}])
    for batch in x.chunk(BATCHES):
        net(batch)
        if steps == BATCHES:
            before_step(net[0])
            sparsifier.step()
    if steps == 1:
        before_step(net[0])
        sparsifier.step()
    sparsifier.squash_mask()
    return net[0].weight.detach()


def best(scores, group):
    """W without the half of it (or of each group) that has the lowest scores."""
    groups = scores.reshape(-1, group or scores.numel())
    lowest = groups.argsort(1)[:, : groups.shape[1] // 2]
    return W * torch.ones_like(groups).scatter(1, lowest, 0).view_as(W).float()


def error(weight):
    return (((weight - W) @ X.T).norm() / (W @ X.T).norm()).item()


def differ(one, two):
    return ((one != 0) != (two != 0)).double().mean().item()


observer = PerChannelNormObserver()
observer(torch.tensor([[3.0, 1.0], [4.0, 1.0]]))
print("the observer's norms of the channels (3, 4) and (1, 1):", [round(n, 4) for n in observer.norm.tolist()])
assert torch.allclose(observer.norm, torch.tensor([25.0, 2.0])), "the behavior has changed: the observer takes the root"

W = LAYER.weight.detach().clone()
norms = X.double().norm(dim=0)
gain = torch.full((INPUTS,), 4.0)
gain[::2] = 0.25
for group, worse in ((None, 1.15), (4, 1.05)):
    name = "2:4" if group else "50%"
    seen = pruned(group)
    squares, wanda, magnitude = (best(W.abs() * norms**power, group) for power in (2, 1, 0))
    cut = [int((weight == 0).all(0).sum()) for weight in (seen, wanda)]
    print(f"{name}: {differ(seen, wanda):.1%} of the mask is not Wanda's; error of the outputs {error(seen):.3f}, "
          f"Wanda {error(wanda):.3f}, magnitude {error(magnitude):.3f}; channels cut off {cut[0]}, Wanda {cut[1]}")
    assert (seen == 0).double().mean() == 0.5
    assert torch.equal(seen, squares), "the behavior has changed: not by the squares"
    assert differ(seen, wanda) > 0.08, "the behavior has changed: Wanda's mask"
    assert worse * error(wanda) < error(seen) < error(magnitude), "the behavior has changed: errors"
    assert cut[0] > 3 * cut[1], "the behavior has changed: channels cut off"
    moved = differ(pruned(group, X * gain, W / gain), seen)
    rooted = pruned(group, before_step=root)
    print(f"     with gains moved into the layer before, {moved:.1%} of the mask changes; "
          f"with roots of the observer's numbers, {differ(pruned(group, X * gain, W / gain, 1, root), rooted):.1%}")
    assert moved > 0.1, "the behavior has changed: gains"
    assert torch.equal(rooted, wanda) and differ(pruned(group, X * gain, W / gain, 1, root), rooted) == 0

    many = pruned(group, steps=BATCHES)
    print(f"     with a step after each batch, {(many == 0).double().mean():.1%} are zeros")
    assert (many == 0).double().mean() > 0.505, "the behavior has changed: the sparsity stays"
    assert torch.equal(pruned(group, steps=BATCHES, before_step=all_ones), seen)

left = (many != 0).view(-1, 4).sum(1).bincount(minlength=5).tolist()
print("     groups of four with 0 to 4 numbers left:", left)
assert left[0] + left[1] > sum(left) / 10 and left[3] == left[4] == 0, "the behavior has changed: 2:4 stays"
PYTHON
