#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 and 2.14.1, too): weights that are written while torch.autocast is entered, by load_state_dict,
# an optimizer, pruning or an average, in training or under torch.no_grad().
#
# Expected: what comes next computes with the new weights.
# Seen: autocast keeps the 16-bit copy of each weight from its first use until the outermost autocast is left, and does
# not notice writes. Several checkpoints that are evaluated in one autocast all get the numbers of the first; so does
# every point of a line between two nets. Three steps of training are the first one three times: the loss stands still
# to the last digit while the weights in fp32 move, in the same direction each time, and jumps when autocast is left.
# Autocast around each forward pass does not help where another one is entered around all, even one with enabled=False.
# Layers that compute in fp32, as LayerNorm here, do see writes, so that a net may move by half.
# Not so: weights with requires_grad=False, torch.inference_mode(), load_state_dict(assign=True); autocast around each
# forward pass and none around all, as the documentation shows it; cache_enabled=False; torch.clear_autocast_cache()
# after each write.
# The documentation advises against backward passes inside, and says of cache_enabled only that there is a "weight
# cache".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

torch.manual_seed(0)
X, Y = torch.randn(64, 32), torch.randint(0, 4, (64,))


def autocast(**settings):
    return torch.autocast("cpu", torch.bfloat16, **settings)


def net(seed, norm=False):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64) if norm else nn.ReLU(), nn.Linear(64, 4))


def loss_of(model):
    return cross_entropy(model(X).float(), Y)


def evaluated(between=lambda model: None, assign=False, trains=True):
    """The losses of three checkpoints, loaded into one net."""
    model, losses = net(9).requires_grad_(trains), []
    for seed in range(3):
        model.load_state_dict(net(seed).state_dict(), assign=assign)
        if assign:
            model.requires_grad_(trains)
        between(model)
        losses.append(loss_of(model).item())
    return losses


def trained(around, norm=False):
    """The losses of three steps, how the weights move in each, and the loss when all regions are left."""
    model = net(0, norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, weights = [], [parameters_to_vector(model.parameters()).detach()]
    with around:
        for _ in range(3):
            with autocast():
                loss = loss_of(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            weights.append(parameters_to_vector(model.parameters()).detach())
    with autocast():
        return losses, torch.stack(weights).diff(dim=0), loss_of(model).item()


def enter(**settings):
    def between(model):
        with autocast(**settings):
            pass

    return between


def shown(losses):
    return ", ".join(f"{loss:.4f}" for loss in losses)


print("torch", torch.__version__)
with torch.no_grad():
    right = []
    for seed in range(3):
        with autocast():
            right.append(loss_of(net(seed)).item())
    with autocast():
        found = evaluated()
    print(f"three checkpoints: {shown(right)}; in one autocast, under no_grad: {shown(found)}")
    assert len({*right}) == 3 and found == [right[0]] * 3, "the behavior has changed: checkpoints"
    a, b, line = (net(seed).state_dict() for seed in (0, 1, 0))
    middle, points = net(0), []
    with autocast():
        for t in (0.0, 0.5, 1.0):
            middle.load_state_dict({name: torch.lerp(a[name], b[name], t) for name in a})
            points.append(loss_of(middle).item())
    print("from one net to another:", shown(points))
    assert points == [right[0]] * 3, "the behavior has changed: a line between two nets"
    for name, between in {"another autocast": enter(), "autocast(enabled=False)": enter(enabled=False)}.items():
        with autocast():
            assert evaluated(between) == found, f"the behavior has changed: {name} inside helps"
    with autocast():
        assert evaluated(lambda model: torch.clear_autocast_cache()) == right
        torch.clear_autocast_cache()
        assert evaluated(assign=True) == right and evaluated(trains=False) == right
    with autocast(cache_enabled=False):
        assert evaluated() == right
with torch.inference_mode(), autocast():
    assert evaluated() == right
with autocast():
    assert evaluated() == found, "the behavior has changed: without no_grad"

usual, moves, after = trained(nullcontext())
inside, stuck, later = trained(autocast())
print(f"three steps: {shown(usual)}, then {after:.4f}; in one autocast: {shown(inside)}, then {later:.4f}")
assert usual[2] < usual[1] < usual[0] and not torch.allclose(moves, moves[:1].expand_as(moves), atol=1e-3)
assert inside == [usual[0]] * 3 and later != inside[0], "the behavior has changed: the loss moves"
assert torch.allclose(stuck, stuck[:1].expand_as(stuck), atol=1e-6), "the behavior has changed: the step changes"
assert trained(autocast(enabled=False))[0] == inside, "the behavior has changed: enabled=False around all"
normed, norm_usual = (trained(around, norm=True)[0] for around in (autocast(), nullcontext()))
print(f"with LayerNorm: {shown(norm_usual)}; in one autocast: {shown(normed)}")
assert len({*normed}) == 3 and normed != norm_usual, "the behavior has changed: LayerNorm"
PYTHON
