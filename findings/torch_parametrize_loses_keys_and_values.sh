#!/usr/bin/env bash
# torch 2.13.0: a parameter with the name keys, values or items cannot be parametrized, and is gone after the attempt.
#
# Expected: torch.nn.utils.parametrize takes any parameter of a module, as weight_norm of old does. An attention over
#   a table of keys and values, or a codebook, gets weight_norm like any other layer; where that cannot be, the error
#   leaves the module as it was.
# Seen: register_parametrization, and so parametrizations.weight_norm, spectral_norm and orthogonal, raise
#   KeyError "attribute 'values' already exists". By then the parameter has been taken out of the module, and the
#   module has another class: parameters() and state_dict() lack it, and reading it is another KeyError. Parametrizations
#   are kept in an nn.ModuleDict under the names of the parameters, and that takes no name that its own methods have:
#   keys, values, items, pop, update, clear.
# Why it matters: a program that tries and goes on without ("not every layer can be normalized") trains and saves the rest
#   of the model. The numbers are lost unless something else holds the parameter.
# Documented: nothing on names, neither for parametrize nor for ModuleDict's keys.
# What works: torch.nn.utils.weight_norm of old; torch.func.functional_call with values of one's own; another name.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, weight_norm


class Table(nn.Module):
    """A parameter with a name to be chosen, and another one beside it."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.register_parameter(name, nn.Parameter(torch.randn(6, 4)))
        self.scale = nn.Parameter(torch.ones(()))


class Doubled(nn.Module):
    def forward(self, w):
        return 2 * w


ways = {
    "register_parametrization": lambda module, name: parametrize.register_parametrization(module, name, Doubled()),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
for name in ("table", "weight", "keys", "values", "items", "pop", "update", "clear"):
    for way, parametrized in ways.items():
        module = Table(name)
        try:
            parametrized(module, name)
            error = None
        except KeyError as raised:
            error = raised.args[0]
        left = sorted(dict(module.named_parameters()))
        if name in ("table", "weight"):
            assert error is None and len(left) > 1 and isinstance(getattr(module, name), torch.Tensor), (name, way)
            continue
        assert error == f"attribute '{name}' already exists", f"the behavior has changed: {way} of {name!r}: {error}"
        assert left == ["scale"], f"the behavior has changed: {left} are left"
        assert list(module.state_dict()) == ["scale"], "the behavior has changed: the state dict has it"
        assert type(module) is not Table, "the behavior has changed: the class is as before"
        try:
            getattr(module, name)
        except KeyError:
            pass
        else:
            raise AssertionError(f"the behavior has changed: {name!r} can be read")
    print(f"{name}: {'is parametrized' if error is None else f'KeyError, and {left} is all that is left'}")

module = weight_norm(Table("values"), "values")
assert sorted(dict(module.named_parameters())) == ["scale", "values_g", "values_v"]
print("weight_norm of old takes values")
PYTHON
