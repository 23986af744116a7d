#!/usr/bin/env bash
# torch 2.13.0: torch.compile of a Hessian-vector product, torch.func.jvp of torch.func.grad, of a function that reads a
# tensor with requires_grad=True from outside.
#
# Expected: what the function gives without torch.compile.
# Seen: the process ends with a segmentation fault. The graph keeps aten._efficientzerotensor, a tensor without memory, and
# multiplies it at run time, where the dispatch key that knows such tensors is off. With some functions (mse_loss of a linear
# layer) it is "RuntimeError: ZeroTensors are immutable" instead. b.detach() in place of b is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/hvp.py" <<'PYTHON'
import sys

import torch

x, v, b = torch.randn(8), torch.randn(3, 8), torch.randn(8, requires_grad=True)
bias = b if sys.argv[1] == "trains" else b.detach()
gradient = torch.func.grad(lambda v: (v * x + bias).square().sum())
hvp = lambda v: torch.func.jvp(gradient, (v,), (torch.ones_like(v),))[1]
torch.testing.assert_close(torch.compile(hvp, backend="aot_eager", fullgraph=True)(v), hvp(v))
print(sys.argv[1], "right, with torch", torch.__version__)
PYTHON
"$folder/venv/bin/python" "$folder/hvp.py" detached
if "$folder/venv/bin/python" "$folder/hvp.py" trains; then echo "the behavior has changed"; exit 1; fi
echo "trains: the process ended"
