#!/usr/bin/env bash
# flax 0.12.8 (nn.ConvLocal) and tf_keras 2.21.0 (LocallyConnected2D): the weights that such a layer starts with.
#
# Expected: as in the convolution (nn.Conv, Conv2D): the initializer is the same by default, each output has as many inputs,
# so at the start outputs are about as large as inputs, whatever the size of the image.
# Seen: the initializers read the number of inputs off the kernel's shape, and take the axes of the positions for a part
# of the window. Flax's weights are 1/sqrt(positions) of a convolution's: at 32×32, outputs shrink by 32 in each layer.
# Keras's are too small as well, and by how much depends on implementation=1, 2 or 3, documented as a matter of speed
# and memory: outputs are 22, 279 and 120 times smaller than Conv2D's at 30×30 positions and 16 channels.
# Who compares locally connected nets with CNNs at the defaults compares with one that hardly starts to learn. A
# kernel_initializer with a standard deviation of one's own helps.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/flax" && python3 -m venv "$folder/keras"
"$folder/flax/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 'jax[cpu]==0.10.2' numpy
"$folder/keras/bin/pip" install --quiet --disable-pip-version-check tf_keras==2.21.0 tensorflow-cpu==2.21.0
"$folder/flax/bin/python" - <<'PYTHON'
import flax.linen as nn
import jax
import numpy as np

for side in (8, 16, 32):
    x = jax.random.normal(jax.random.key(0), (8, side, side, 16))
    (conv, conv_kernel), (local, local_kernel) = (
        (y.std(), variables["params"]["kernel"].std())
        for y, variables in (layer(16, (3, 3)).init_with_output(jax.random.key(1), x) for layer in (nn.Conv, nn.ConvLocal))
    )
    print(f"flax, {side:2}×{side:2} positions: outputs {conv:.3f} by Conv, {local:.4f} by ConvLocal")
    assert abs(conv_kernel * np.sqrt(9 * 16) - 1) < 0.1
    assert abs(local_kernel * np.sqrt(9 * 16) * side - 1) < 0.1, "the behavior has changed: another scale"
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$folder/keras/bin/python" - <<'PYTHON'
import numpy as np
import tf_keras
from tf_keras.layers import Conv2D, LocallyConnected2D

tf_keras.utils.set_random_seed(0)
for side, at_least in ((16, (7, 30, 15)), (32, (15, 150, 40))):
    x = np.random.default_rng(0).standard_normal((8, side, side, 16), np.float32)
    conv = np.std(Conv2D(16, 3)(x))
    ratios = [float(conv / np.std(LocallyConnected2D(16, 3, implementation=way)(x))) for way in (1, 2, 3)]
    print(f"tf_keras, {side - 2}×{side - 2} positions: outputs smaller than Conv2D's", [f"{r:.0f} times" for r in ratios])
    assert 0.8 < conv < 1.25
    assert all(ratio > bound for ratio, bound in zip(ratios, at_least)), "the behavior has changed: larger weights"
PYTHON
