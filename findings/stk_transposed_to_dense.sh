#!/usr/bin/env bash
# stanford-stk 0.7.1 (the block-sparse matrices of MegaBlocks), on the CPU: stk.ops.to_dense of a transposed matrix.
#
# Expected: to_dense(m.t()) is to_dense(m).t(), since m.t() has the transposed shape and stk's products take it as one.
# Seen: no error, and a matrix that is neither. t() swaps the index arrays and leaves the blocks as they lie, as rows
# of the matrix before it was transposed; to_dense does not look at that, so numbers land in other rows.
# Who checks a converter against to_dense is told that right blocks are wrong, or the other way round.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check stanford-stk==0.7.1 torch==2.13.0 triton==3.9.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import stk
import torch

x = torch.arange(1.0, 33).reshape(4, 8)
m = stk.ops.to_sparse(x, 2)
assert torch.equal(stk.ops.to_dense(m), x)
transposed = stk.ops.to_dense(m.t())
print("to_dense(m.t()), of the numbers 1 to 32 in rows of 8:", transposed.int().tolist(), sep="\n")
assert transposed.shape == x.t().shape
assert not torch.equal(transposed, x.t()), "the behavior has changed: the transpose is right"
assert transposed[0].tolist() == [1.0, 2.0, 3.0, 4.0], "the behavior has changed: other numbers in the first row"
PYTHON
