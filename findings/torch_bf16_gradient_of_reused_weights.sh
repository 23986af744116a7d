#!/usr/bin/env bash
# torch 2.13.0 on a CPU: sums in bfloat16 where a weight is read many times by an index, or a sparse matrix has long rows.
#
# Expected: sums in fp32, rounded once at the end, as in matrix products, convolutions, sum() and the gradient of expand.
# Seen: so it is for some, and others add number by number in bfloat16, which stands still at 256, since 256 + 1 is 256.
# A weight that is read 4096 times, with a gradient of 1 each time, gets 256: by w[index], index_select, take and
# nn.Embedding. gather, take_along_dim and expand give 4096. index_add does the one for a vector and the other for a
# matrix. The product of a COO matrix stops at 256, and that of the same matrix as CSR by torch.sparse.mm(.., "sum") goes
# on; autocast turns an fp32 COO product into the one that stops.
# Weights shared by an index (a kernel that is laid out over positions, tables of relative positions, a frequent token)
# learn the slower the more often they are used, and nothing says so. float16 stops at 2048. Read by gather, or read
# in fp32 and cast afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

import torch
from torch.nn import functional as F

warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
TIMES = 4096
ZEROS = torch.zeros(TIMES, dtype=torch.long)
STOPS = {torch.bfloat16: 256.0, torch.float16: 2048.0, torch.float32: float(TIMES)}


def gradient(read, dtype, shape):
    weight = torch.zeros(shape, dtype=dtype, requires_grad=True)
    read(weight).float().sum().backward()
    return weight.grad.flatten()[0].item()


def added(shape, dtype):
    """Ones added to the first row."""
    return torch.zeros(shape, dtype=dtype).index_add(0, ZEROS, torch.ones(TIMES, *shape[1:], dtype=dtype)).flatten()[0].item()


def ones(n, dtype):
    return torch.ones(1, n, dtype=dtype), torch.ones(n, 1, dtype=dtype)


def product(dtype, call):
    row, column = ones(TIMES, dtype)
    return call(row, column).item()


def under_autocast(row, column):
    with torch.autocast("cpu", torch.bfloat16):
        return torch.sparse.mm(row.float().to_sparse(), column.float())


stop = {
    "gradient of w[index]": lambda d: gradient(lambda w: w[ZEROS], d, (1,)),
    "gradient of index_select": lambda d: gradient(lambda w: w.index_select(0, ZEROS), d, (1,)),
    "gradient of take": lambda d: gradient(lambda w: w.take(ZEROS), d, (1,)),
    "gradient of embedding": lambda d: gradient(lambda w: F.embedding(ZEROS, w), d, (1, 16)),
    "index_add to a vector": lambda d: added((2,), d),
    "COO @ dense": lambda d: product(d, lambda row, column: row.to_sparse() @ column),
}
go_on = {
    "gradient of gather": lambda d: gradient(lambda w: w.gather(0, ZEROS), d, (1,)),
    "gradient of take_along_dim": lambda d: gradient(lambda w: w.take_along_dim(ZEROS, 0), d, (1,)),
    "gradient of expand": lambda d: gradient(lambda w: w.expand(TIMES), d, (1,)),
    "index_add to a matrix": lambda d: added((2, 8), d),
    "dense @ dense": lambda d: product(d, torch.matmul),
    "CSR, reduced by sum": lambda d: product(d, lambda row, column: torch.sparse.mm(row.to_sparse_csr(), column, "sum")),
}
print(f"right: {TIMES}", *(str(dtype).removeprefix("torch.").rjust(9) for dtype in STOPS), sep="   ")
for calls, right in ((stop, False), (go_on, True)):
    for name, call in calls.items():
        found = {dtype: call(dtype) for dtype in STOPS}
        print(f"{name:27}", *(f"{number:9.0f}" for number in found.values()), sep="   ")
        expected = dict.fromkeys(STOPS, float(TIMES)) if right else STOPS
        assert found == expected, f"the behavior has changed: {name}"
autocast = under_autocast(*ones(TIMES, torch.float32)).item()
print("COO in fp32, under autocast to bfloat16:", autocast)
assert autocast == 256.0, "the behavior has changed under autocast"

kernel = torch.zeros(9, dtype=torch.bfloat16, requires_grad=True)  # a 3×3 kernel laid out over 32×32 positions
kernel[torch.arange(9).repeat(32 * 32)].float().sum().backward()
print("a kernel of 9 at 1024 positions, its gradient:", kernel.grad.tolist())
assert kernel.grad.tolist() == [256.0] * 9
print("torch", torch.__version__)
PYTHON
