#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy.save and save_file of transposed or Fortran-ordered arrays.
#
# Expected: the file holds the array that was given, as with 0.7 and as numpy.save has it; or ValueError, as
# safetensors.torch raises for a tensor that is not contiguous.
# Seen: no error, the right shape and dtype, and the numbers in the order in which they lie in memory: scrambled. 0.8
# hands a pointer to the writer, and does not look at strides.
# kernel.transpose(3, 2, 0, 1), the usual step from a kernel [height, width, in, out] of Keras or Flax to torch's
# [out, in, height, width], is such an array, and so is .T of a dense kernel. The converted net loads without
# complaint and predicts noise. numpy.ascontiguousarray first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import safetensors
from safetensors.numpy import load, save


def saved(array):
    return load(save({"w": array}))["w"]


keras = np.arange(3 * 3 * 2 * 4, dtype=np.float32).reshape(3, 3, 2, 4)  # [height, width, in, out]
arrays = {
    "kernel.transpose(3, 2, 0, 1)": keras.transpose(3, 2, 0, 1),
    "dense.T": np.arange(6.0).reshape(2, 3).T,
    "numpy.asfortranarray(dense)": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}
for name, array in arrays.items():
    back = saved(array)
    print(f"{name}: {array.ravel()[:4]} ... came back as {back.ravel()[:4]} ...")
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert not np.array_equal(back, array), "the behavior has changed: the array is right"
    assert np.array_equal(back.ravel(), array.ravel(order="K")), "the behavior has changed: another order"
    assert np.array_equal(saved(np.ascontiguousarray(array)), array)
print("safetensors", safetensors.__version__)
PYTHON
