#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0: load_checkpoint_and_dispatch with a layer on disk, for a net with batch norms.
#
# Expected: where a layer lies is a matter of memory. offload_buffers=False, the default ("whether or not to offload the
#   buffers as well as the parameters"), keeps buffers in memory, with the numbers of the checkpoint; outputs are those
#   of the net that was saved, as they are with the layer on the CPU.
# Seen: buffers of a layer on disk have the numbers that the model was made with. The checkpoint's are written to the
#   offload folder with all else, and with the default nothing reads them back. A batch norm has a mean of 0 and a
#   variance of 1 in evaluation mode, whatever was trained, and nothing warns. The same layer on the CPU, or with
#   offload_buffers=True, is right.
# Why it matters: device_map="auto" puts layers on disk where memory ends, so a net with batch norms is right on one
#   machine and wrong on a smaller one. So are all persistent buffers: of an embedding, a mask, index arrays.
# Documented: the sentence above. With init_empty_weights(include_buffers=True), which is not the default, it is a
#   ValueError.
# What works: offload_buffers=True.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check accelerate==1.15.0 torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2> "$folder/errors" <<'PYTHON' || { cat "$folder/errors"; exit 1; }
import tempfile

import torch
from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


torch.manual_seed(0)
saved = net()
for _ in range(50):  # the statistics of data with mean 5 and deviation 3
    saved(5 + 3 * torch.randn(64, 8))
saved.eval()
x = 5 + 3 * torch.randn(16, 8)
fresh = net().eval()  # the saved weights, and statistics of a new batch norm
fresh.load_state_dict({name: one for name, one in saved.state_dict().items() if "running" not in name}, strict=False)
with torch.no_grad():
    right, unset = saved(x), fresh(x)
assert (right - unset).norm() > 0.5 * right.norm()

with tempfile.TemporaryDirectory() as folder:
    Accelerator().save_model(saved, folder)
    for place, whole in (("cpu", False), ("cpu", True), ("disk", True), ("disk", False)):
        with init_empty_weights():
            model = net()
        model = load_checkpoint_and_dispatch(
            model, folder, device_map={"0": "cpu", "1": place, "2": "cpu"},
            offload_folder=f"{folder}/{place}{whole}", offload_buffers=whole,
        ).eval()
        with torch.no_grad():
            error = float((model(x) - right).norm() / right.norm())
            of_new = torch.allclose(model(x), unset, atol=1e-6)
        print(f"batch norm on {place}, offload_buffers={whole}: off by {error:.0%}")
        if (place, whole) == ("disk", False):
            assert of_new, "the behavior has changed: the outputs are not those of a new batch norm"
            assert float(model[1].running_mean.abs().max()) == 0.0, "the behavior has changed: the mean was loaded"
        else:
            assert error < 1e-6, (place, whole, error)
print("torch", torch.__version__)
PYTHON
