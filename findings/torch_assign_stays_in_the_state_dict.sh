#!/usr/bin/env bash
# torch 2.13.0: load_state_dict(state, assign=True), and the same state dict loaded once more, into another model.
#
# Expected: assign is an option of the one call. A later load_state_dict(state), without it, copies as always: the model
#   keeps its own parameters, which an optimizer holds, and shares no memory with the state dict or another model.
# Seen: the first call writes the option into the metadata of the caller's state dict (state._metadata), where it stays.
#   Every later load of this object assigns, too. Two nets that were loaded from it share their memory, so a step of one
#   moves the other, and the state dict, which was kept as the best so far. The parameters that an optimizer was made
#   with are no longer those of the model: it steps, and the model stands still.
# Why it matters: a state dict is loaded more than once: into an average, a teacher, each member of an ensemble, or to
#   go back to the best epoch. Nothing is raised; all keys match.
# Documented: assign is documented as an argument; nothing says that it changes the state dict. Reported in June 2026
#   (issue 188166 of pytorch, open).
# What works: dict(state), a copy without metadata.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def memory(source):
    return [tensor.data_ptr() for tensor in (source if isinstance(source, dict) else source.state_dict()).values()]


def loaded(source):
    """A net and its optimizer, into which the state dict is loaded by the default."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = model.load_state_dict(source)
    assert not told.missing_keys and not told.unexpected_keys
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


torch.manual_seed(0)
best = net().state_dict()
before = {name: tensor.clone() for name, tensor in best.items()}

# the control: without assign, a model has its own memory, and trains
model, optimizer = loaded(best)
assert not set(memory(model)) & set(memory(best))
step(model, optimizer)
assert not torch.equal(model[0].weight, before["0.weight"])
assert torch.equal(best["0.weight"], before["0.weight"])

with torch.device("meta"):
    served = net()
served.load_state_dict(best, assign=True)
marks = {name: entry.get("assign_to_params_buffers") for name, entry in best._metadata.items()}
print("in the state dict afterwards:", marks)
assert any(marks.values()), "the behavior has changed: the state dict is as it was"

again, its_optimizer = loaded(best)
assert memory(again) == memory(best) == memory(served), "the behavior has changed: the second load has copied"
step(again, its_optimizer)
assert torch.equal(again[0].weight, before["0.weight"]), "the behavior has changed: the optimizer holds the parameters"
print("a model that is loaded without assign shares its memory with the other, and its optimizer moves nothing")

late = torch.optim.SGD(again.parameters(), lr=0.1)
step(again, late)
assert not torch.equal(best["0.weight"], before["0.weight"]), "the behavior has changed: the state dict stands still"
assert torch.equal(served[0].weight, again[0].weight)
print("with a new optimizer it trains, and the state dict and the first model move along")

fresh = {name: tensor.clone() for name, tensor in before.items()}
model, optimizer = loaded(dict(fresh))
assert not set(memory(model)) & set(memory(fresh))
model, optimizer = loaded(dict(best))  # no metadata, so it copies
assert not set(memory(model)) & set(memory(best))
print("torch", torch.__version__)
PYTHON
