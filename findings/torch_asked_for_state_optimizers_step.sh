#!/usr/bin/env bash
# torch 2.13.0 (2.11.0 and 2.14.1, too): get_optimizer_state_dict and get_state_dict of
# torch.distributed.checkpoint.state_dict, for an optimizer that has not made a step yet. No process group, no FSDP.
#
# Expected: to ask for a state changes nothing. The documentation says that for a module that is not parallelized,
# "get_state_dict only performs one function -- converting the optimizer parameter IDs to the canonical FQNs".
# Seen: so that there is a state to give, torch makes gradients of zero and takes a step at a learning rate of zero. The
# weights stay, but what the step leaves in the state counts. From there on the run is another one: the first step of
# Adam and AdamW is 0.74 of its length, that of RAdam and Adamax 0.53, ASGD's is nothing, SGD's with dampening 0.9 is a
# tenth, and with momentum and weight decay SGD has the decay of one more step in its momentum. Rprop keeps a step size
# for each weight and takes it from that zero: it starts at its least one, 1e-6, and after 20 steps has come less than a
# thousandth of its way.
# So a checkpoint at step 0, or a loader that asks for a state to have tensors to load into and finds no checkpoint,
# gives another run than one that did not ask. Without an error; losses look alike, but for Rprop.
# Not so: plain SGD, or with momentum alone, Adagrad, Adadelta, RMSprop, Muon; any optimizer after its first step, or
# while gradients are there; optimizer.state_dict().
# PyTorch's issue 164929 (open) has it for AdamW.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import math
import warnings

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Muon, RAdam, RMSprop, Rprop

warnings.filterwarnings("ignore", category=FutureWarning)
LR, STEPS = 0.1, 20
CASES = {
    "Adam": (Adam, {}),
    "AdamW": (AdamW, {}),
    "AdamW, fused": (AdamW, dict(fused=True)),
    "RAdam": (RAdam, {}),
    "Adamax": (Adamax, {}),
    "ASGD": (ASGD, {}),
    "Rprop": (Rprop, {}),
    "SGD, momentum, dampening": (SGD, dict(momentum=0.9, dampening=0.9)),
    "SGD, momentum, weight decay": (SGD, dict(momentum=0.9, weight_decay=0.1)),
}
UNCHANGED = {
    "SGD": (SGD, {}),
    "SGD, momentum": (SGD, dict(momentum=0.9)),
    "Adagrad": (Adagrad, {}),
    "Adadelta": (Adadelta, {}),
    "RMSprop": (RMSprop, {}),
    "Muon": (Muon, {}),
}


def nothing(net, optimizer):
    pass


def own_state(net, optimizer):
    optimizer.state_dict()


def run(kind, settings, ask, when=0):
    """The net after each step, as one vector, starting with how it was; ``ask`` is called before step ``when``."""
    torch.manual_seed(0)
    net, x = nn.Linear(6, 4, bias=False), torch.randn(8, 6)
    optimizer = kind(net.parameters(), lr=LR, **settings)
    passed = []
    for step in range(STEPS):
        passed.append(net.weight.detach().flatten().clone())
        if step == when:
            optimizer.zero_grad()
            ask(net, optimizer)
            assert torch.equal(passed[-1], net.weight.detach().flatten()), "the behavior has changed: weights move"
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([*passed, net.weight.detach().flatten()])


def ratios(kind, settings, ask):
    """The distance from the start after the first and after all steps, over that of a run that never asked."""
    usual, asked = (run(kind, settings, one) for one in (nothing, ask))
    moved = [(path[[1, STEPS]] - path[0]).norm(dim=1) for path in (asked, usual)]
    return (moved[0] / moved[1]).tolist()


first, last = {}, {}
print("torch", torch.__version__, "- distance from the start over that of a run that never asked, after 1 and", STEPS)
for name, case in CASES.items():
    first[name], last[name] = ratios(*case, get_optimizer_state_dict)
    print(f"{name:28} {first[name]:8.4f} {last[name]:8.4f}")
    assert ratios(*case, get_state_dict) == [first[name], last[name]], "the behavior has changed: get_state_dict"
    usual = run(*case, nothing)
    assert torch.equal(run(*case, own_state), usual), "optimizer.state_dict() changes nothing"
    assert torch.equal(run(*case, get_optimizer_state_dict, when=3), usual), "after a step, asking changes nothing"

# The second step's bias correction where the first one's belongs
adam = (0.1 / (1 - 0.9**2)) / math.sqrt(0.001 / (1 - 0.999**2))
for name in ("Adam", "AdamW", "AdamW, fused"):
    assert abs(first[name] - adam) < 1e-3, "the behavior has changed: Adam"
for name in ("RAdam", "Adamax"):
    assert abs(first[name] - 0.1 / (1 - 0.9**2)) < 1e-3, f"the behavior has changed: {name}"
assert first["ASGD"] == 0, "the behavior has changed: ASGD"
assert abs(first["Rprop"] - 1e-5) < 1e-6, "the behavior has changed: Rprop begins elsewhere than at 1e-6"
assert last["Rprop"] < 1e-3, "the behavior has changed: Rprop"
assert abs(first["SGD, momentum, dampening"] - 0.1) < 1e-5, "the behavior has changed: dampening"
assert first["SGD, momentum, weight decay"] > 1.05, "the behavior has changed: weight decay"

for name, case in UNCHANGED.items():
    same = torch.equal(run(*case, get_optimizer_state_dict), run(*case, nothing))
    print(f"{name:28} {'as if nobody had asked' if same else 'differs'}")
    assert same

# With gradients there, torch takes no step
net = nn.Linear(6, 4, bias=False)
optimizer = AdamW(net.parameters())
net(torch.ones(1, 6)).sum().backward()
assert not get_optimizer_state_dict(net, optimizer)["state"] and not optimizer.state
PYTHON
