#!/usr/bin/env bash
# torch 2.13.0: copy.deepcopy of a module with a parametrization, such as weight_norm or spectral_norm.
#
# Expected: the copy is independent; torch.nn.utils.parametrize.remove_parametrizations(copy, "weight") makes the copy a
# plain module again and leaves the original as it is.
# Seen: a parametrization gives its module a class of its own, with a property for the weight. deepcopy makes new
# parameters and buffers, but the copy has the same class object. Removing the parametrization from the copy deletes the
# property from that class, so the original loses its weight: reading it, and running the module, raises AttributeError.
# Who strips weight_norm from a copy for export or inference breaks the model that goes on training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

for make in (parametrizations.weight_norm, parametrizations.spectral_norm):
    original = make(nn.Conv2d(2, 2, 3))
    twin = copy.deepcopy(original)
    assert twin.parametrizations.weight is not original.parametrizations.weight
    assert type(twin) is type(original), "deepcopy now gives the copy a class of its own"
    x = torch.randn(1, 2, 5, 5)
    original(x)
    parametrize.remove_parametrizations(twin, "weight")
    twin(x)
    try:
        original(x)
    except AttributeError as error:
        print(f"{make.__name__}: the copy runs, the original raises AttributeError: {error}")
    else:
        raise SystemExit(f"{make.__name__}: the original still runs: the behavior has changed")
print("torch", torch.__version__)
PYTHON
