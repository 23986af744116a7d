#!/usr/bin/env bash
# torch 2.13.0: load_state_dict(..., assign=True) into a model with tied weights, from its own file.
#
# Expected: the model that was saved, weights tied, as without assign=True; or missing keys, or an error.
# Seen: all keys match, the outputs are right, and the tie is gone, though both names share memory in the file and after
# loading. There are two Parameters over one memory: clipping and optimizers see the weight twice, each with a part of
# the gradient, and AdamW moves it twice a step, by up to lr each time. SGD hides it: the two parts add up.
# assign=True is how models from the meta device are filled: they train, with other steps than the model that was saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import io

import torch
from torch import nn

TOKENS = torch.arange(6)


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    return model


def step(model, optimizer_class):
    """How far one step at lr = 0.01 moves the shared weight at most."""
    optimizer = optimizer_class(model.parameters(), lr=0.01, weight_decay=0.0)
    before = model[0].weight.detach().clone()
    nn.functional.cross_entropy(model(TOKENS), TOKENS.roll(1)).backward()
    optimizer.step()
    return (model[0].weight.detach() - before).abs().max().item()


def loaded(assign):
    file = io.BytesIO()
    torch.save(make().state_dict(), file)
    file.seek(0)
    model = make()
    model.load_state_dict(torch.load(file), assign=assign)
    return model


assert torch.equal(loaded(True)(TOKENS), loaded(False)(TOKENS))
model = loaded(True)
assert model[0].weight.data_ptr() == model[1].weight.data_ptr(), "the behavior has changed: two memories"
assert model[0].weight is not model[1].weight, "the behavior has changed: the weights stay tied"
for optimizer_class in (torch.optim.AdamW, torch.optim.SGD):
    tied, assigned = step(loaded(False), optimizer_class), step(loaded(True), optimizer_class)
    print(f"{optimizer_class.__name__}, a step at lr 0.01: {tied:.4f}, after assign=True {assigned:.4f}")
    assert abs(assigned / tied - (2 if optimizer_class is torch.optim.AdamW else 1)) < 0.05
print("torch", torch.__version__)
PYTHON
