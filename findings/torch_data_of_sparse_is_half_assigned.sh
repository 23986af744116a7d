#!/usr/bin/env bash
# torch 2.13.0 (2.14.1, too): assigning .data of a tensor in CSR, CSC, BSR or BSC, and module.to(dtype), .half() or
# .double() of a module with such a parameter.
#
# Expected: weight.data = new gives weight the numbers and the pattern of new, as for strided and COO tensors, or
# raises; module.double() converts, as weight.double() does, and as it does for a buffer.
# Seen: no error, and half of it. Shape and dtype are those of new, the index arrays and the values stay the old ones. Of
# the same shape and dtype, the assignment does nothing at all: weight.data = pruned.to_sparse_bsr(...) prunes nothing,
# and an average of CSR weights in the usual form, a.data = 0.9 * a.data + 0.1 * w, stands still.
# module.to assigns .data as well: afterwards weight.dtype is float64 or bfloat16, and so it prints, and its values are
# float32. Products raise then; a checkpoint doesn't, and holds float32.
# PyTorch's issue 136258 (open) has it for devices, since 2.4: .to("cuda") leaves the values on the CPU. The documentation
# of torch.sparse is silent.
# A new nn.Parameter, load_state_dict(..., assign=True), and torch.__future__.set_swap_module_params_on_conversion(True)
# are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import io
import warnings

import torch
from torch import nn

warnings.filterwarnings("ignore", message=".*beta state")
torch.manual_seed(0)
OLD = torch.randn(8, 8)
NEW = torch.randn(8, 8)
NEW[:4] = 0  # prunes half of the blocks
LAYOUTS = {
    "strided": lambda w: w.clone(),
    "COO": lambda w: w.to_sparse(),
    "CSR": lambda w: w.to_sparse_csr(),
    "CSC": lambda w: w.to_sparse_csc(),
    "BSR": lambda w: w.to_sparse_bsr((2, 2)),
    "BSC": lambda w: w.to_sparse_bsc((2, 2)),
}
ASSIGNED = {"strided", "COO"}


def numbers(weight):
    """The stored numbers themselves."""
    weight = weight.detach()
    return weight if weight.layout == torch.strided else weight._values() if weight.is_sparse else weight.values()


def holder(weight):
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


print("torch", torch.__version__)
for name, make in LAYOUTS.items():
    weight = nn.Parameter(make(OLD))
    weight.data = make(NEW)
    dense = weight.detach().to_dense()
    outcome = {(True, False): "the old numbers", (False, True): "the new numbers"}[
        torch.equal(dense, OLD), torch.equal(dense, NEW)
    ]

    average, moved = nn.Parameter(make(OLD)), None
    if name in ("strided", "COO", "CSR"):  # torch adds up these
        for _ in range(10):
            average.data = 0.9 * average.data + 0.1 * make(OLD + 1)
        moved = (average.detach().to_dense() - OLD).mean().item()

    converted = holder(make(OLD)).double()
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file)["weight"]
    averages = "" if moved is None else f"an average moves by {moved:.2f}; "
    print(f"{name:7}: .data = gives {outcome}; {averages}.double() gives {converted.weight.dtype} "
          f"with values {numbers(converted.weight).dtype}, saved {loaded.dtype}")
    assert converted.weight.dtype == torch.float64
    if name in ASSIGNED:
        assert outcome == "the new numbers" and abs(moved - (1 - 0.9**10)) < 1e-5
        assert numbers(converted.weight).dtype == loaded.dtype == torch.float64
        continue
    assert outcome == "the old numbers", "the behavior has changed: .data is assigned"
    assert moved in (0, None), "the behavior has changed: averages move"
    assert numbers(converted.weight).dtype == loaded.dtype == torch.float32, "the behavior has changed: double()"

    half = holder(make(OLD)).to(torch.bfloat16).weight
    assert half.dtype == torch.bfloat16 and numbers(half).dtype == torch.float32, "the behavior has changed: bfloat16"
    other = nn.Parameter(make(OLD))
    other.data = make(torch.randn(6, 6))
    assert other.shape == (6, 6), "the behavior has changed: the shape stays"
    assert numbers(other).shape == numbers(make(OLD)).shape, "the behavior has changed: the values follow the shape"

    # What works
    assert numbers(make(OLD).double()).dtype == torch.float64
    module = nn.Module()
    module.register_buffer("weight", make(OLD))
    assert numbers(module.double().weight).dtype == torch.float64
    module = holder(make(OLD))
    module.load_state_dict({"weight": make(NEW)}, assign=True)
    assert torch.equal(module.weight.detach().to_dense(), NEW)
    torch.__future__.set_swap_module_params_on_conversion(True)
    swapped = holder(make(OLD)).double().weight
    torch.__future__.set_swap_module_params_on_conversion(False)
    assert numbers(swapped).dtype == torch.float64

linear = nn.Linear(8, 8, bias=False)
linear.weight = nn.Parameter(OLD.to_sparse_bsr((2, 2)))
x = torch.randn(3, 8)
before = linear(x).detach()
linear.weight.data = NEW.to_sparse_bsr((2, 2))
print(f"blocks of a BSR weight after half of them were pruned by .data: {linear.weight._nnz()} of 16; "
      f"its layer's outputs differ by {(linear(x) - before).abs().max():g}")
assert linear.weight._nnz() == 16 and torch.equal(linear(x), before), "the behavior has changed: pruned"
try:
    linear.double()(x.double())
    raise AssertionError("the behavior has changed: a converted layer multiplies")
except RuntimeError as error:
    print("after double():", error)
PYTHON
