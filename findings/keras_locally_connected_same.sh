#!/usr/bin/env bash
# tf_keras 2.21.0 (Keras 2), LocallyConnected2D and LocallyConnected1D with padding="same" or channels_first.
#
# Expected from the documentation ("similar to Conv2D, except that weights are unshared"): with one kernel at every
# position the layer computes what Conv2D does, and the bias [rows, cols, filters] is added at rows, cols, filters.
# Seen: (1) padding="same" puts kernel_size // 2 zeros before the image, whatever the stride, where Conv2D puts
# (total - total // 2) behind: for even kernels, and for strides, the results differ. (2) with channels_first the bias
# is reshaped, not transposed, to [filters, rows, cols], so its numbers go to other places.
# Who moves weights to another library by the shapes alone gets wrong numbers, and no error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tf_keras==2.21.0 tensorflow-cpu==2.21.0
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tf_keras
from tf_keras.layers import Conv1D, LocallyConnected1D, LocallyConnected2D

draw = np.random.default_rng(0)


def by_hand(x, kernel, before, stride, out):
    """A convolution of [length, 1] with ``before`` zeros in front."""
    padded = np.concatenate([np.zeros((before, 1)), x, np.zeros((len(kernel) + 9, 1))])
    return np.array([(padded[p * stride : p * stride + len(kernel), 0] * kernel).sum() for p in range(out)])


for size, kernel_size, stride in ((6, 2, 1), (6, 3, 2), (5, 3, 1)):
    kernel, x = draw.standard_normal(kernel_size), draw.standard_normal((1, size, 1))
    local = LocallyConnected1D(1, kernel_size, strides=stride, padding="same", implementation=2, use_bias=False)
    local.build(x.shape)
    dense = np.zeros(local.get_weights()[0].shape, np.float32)  # [in, 1, out, 1]
    for p in range(dense.shape[2]):
        for t in range(kernel_size):
            q = p * stride - kernel_size // 2 + t
            if 0 <= q < size:
                dense[q, 0, p, 0] = kernel[t]
    local.set_weights([dense])
    conv = Conv1D(1, kernel_size, strides=stride, padding="same", use_bias=False)
    conv.build(x.shape)
    conv.set_weights([kernel.reshape(-1, 1, 1)])
    here, there = local(x).numpy().ravel(), conv(x).numpy().ravel()
    half = by_hand(x[0], kernel, kernel_size // 2, stride, len(here))
    total = max(0, (len(there) - 1) * stride + kernel_size - size)
    assert np.allclose(here, half, atol=1e-5), "LocallyConnected1D: the padding in front is no longer kernel_size // 2"
    assert np.allclose(there, by_hand(x[0], kernel, total // 2, stride, len(there)), atol=1e-5), "Conv1D changed"
    assert np.allclose(here, there, atol=1e-5) == (kernel_size // 2 == total // 2)
    print(f"size {size}, kernel {kernel_size}, stride {stride}: LocallyConnected1D pads {kernel_size // 2} in front, Conv1D {total // 2}")

layer = LocallyConnected2D(3, (1, 1), data_format="channels_first", implementation=2)
layer.build((1, 1, 2, 4))
kernel, _ = layer.get_weights()
bias = draw.standard_normal((2, 4, 3)).astype(np.float32)
layer.set_weights([np.zeros_like(kernel), bias])
y = layer(np.zeros((1, 1, 2, 4), np.float32)).numpy()[0]
assert np.allclose(y, bias.reshape(3, 2, 4)) and not np.allclose(y, bias.transpose(2, 0, 1))
print("channels_first: the bias [2, 4, 3] is added as bias.reshape(3, 2, 4), not as bias.transpose(2, 0, 1)")
print("tf_keras", tf_keras.__version__)
PYTHON
