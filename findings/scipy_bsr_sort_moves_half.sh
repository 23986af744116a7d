#!/usr/bin/env bash
# SciPy 1.17.1: scipy.sparse.bsr_array of blocks that are not C-contiguous, such as blocks transposed by NumPy.
#
# Expected: strides do not matter, as in the rest of NumPy and SciPy; A.max() and abs(A) leave A as it is.
# Seen: toarray, products and transposes are right, until something sorts the blocks. sort_indices moves the column
# indices, and moves the blocks in a raveled copy that it throws away: each block then stands where another one was,
# without a word. sum_duplicates, max, power, abs and others sort first, so a call that only reads changes the matrix.
# Blocks that are sorted from the start, or C-contiguous, are safe.
# blocks.transpose(0, 2, 1) is how one moves blocks from a layout that stores them by columns (BSC, pytorch_block_sparse),
# and there the blocks of a row are often unsorted, too. numpy.ascontiguousarray first, or A.copy(), which does that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from scipy.sparse import bsr_array

BY_COLUMNS = np.arange(1.0, 13).reshape(3, 2, 2)  # each block stored by columns


def make(arrange):
    """Two blocks in the first row, the right one first, and one in the second row."""
    blocks = arrange(BY_COLUMNS.transpose(0, 2, 1))
    matrix = bsr_array((blocks, np.array([1, 0, 0]), np.array([0, 2, 3])), shape=(4, 4))
    assert not matrix.has_sorted_indices
    return matrix


right = make(np.ascontiguousarray).toarray()
print("the matrix:", right.astype(int).tolist(), sep="\n")
calls = {
    "sort_indices()": lambda m: m.sort_indices(),
    "sum_duplicates()": lambda m: m.sum_duplicates(),
    "max()": lambda m: m.max(),
    "abs(matrix)": abs,
    "power(2)": lambda m: m.power(2),
}
for name, call in calls.items():
    safe, matrix = make(np.ascontiguousarray), make(lambda blocks: blocks)
    assert np.array_equal(matrix.toarray(), right) and np.array_equal(matrix @ np.eye(4), right)
    call(safe)
    call(matrix)
    print(f"after {name}:", matrix.toarray().astype(int).tolist(), sep="\n")
    assert np.array_equal(safe.toarray(), right)
    assert not np.array_equal(matrix.toarray(), right), "the behavior has changed: the matrix is right"
    assert np.array_equal(matrix.toarray()[:2], right[:2, [2, 3, 0, 1]]), "the behavior has changed: not swapped"
assert np.array_equal(make(lambda blocks: blocks).copy().power(1).toarray(), right)
PYTHON
