#!/usr/bin/env bash
# torch 2.13.0: what a process imports that never compiles anything.
#
# Expected: `import torch` brings what plain training needs; torch._dynamo and SymPy come with the first torch.compile.
# Seen: they come with the first optimizer, of whatever kind, even without a step: Optimizer.add_param_group is marked as not to
# be compiled, and looks the marking up in torch._dynamo. That is 823 modules, SymPy among them, and 0.9 s when their
# bytecode is there (AMD Zen 5). So each worker process that trains pays it; a fork server that has imported torch._dynamo
# spares them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
for round in 1 2; do
    "$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch

heavy = ("torch._dynamo", "sympy")
before, start = set(sys.modules), time.perf_counter()
assert not any(name in before for name in heavy)
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
seconds = time.perf_counter() - start
new = set(sys.modules) - before
print(f"torch {torch.__version__}: the first optimizer imports {len(new)} modules in {seconds:.1f} s")
assert all(name in new for name in heavy), "the behavior has changed"
PYTHON
done
