#!/usr/bin/env bash
# tensorflow-model-optimization 0.8.1 with tf_keras 2.21.0: prune_low_magnitude with a block_size, on weights whose sides
# are no multiples of it.
#
# Expected: blocks start at row 0 and column 0, those at the far edges are smaller, and the ones with the smallest mean
# magnitude (block_pooling_type="AVG", the default) become zero; or an error, as there is no rule for a rest.
# Seen: the zeros do lie in such blocks, and other blocks were compared. The magnitudes are pooled with padding="SAME", which
# puts half of what is missing in front: the windows are up to half a block further up and to the left than the blocks.
# So blocks are kept and zeroed by what their neighbours hold, and the block with the largest weights can go.
# 784×300 with blocks of 32×32, the first layer of the usual MNIST net, is off by 8 rows and 10 columns: of the 62 blocks
# kept, 48 are among the 62 largest here. One row missing is harmless, and sparsity and shape of the blocks are as asked for.
# Accuracy is lost to what looks like the price of large blocks. Choose blocks that divide both sides.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-model-optimization==0.8.1 tf_keras==2.21.0 \
    tensorflow-cpu==2.21.0 numpy
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.sparsity import keras as sparsity

tf.get_logger().setLevel("ERROR")


def pruned(kernel, block, share, pooling="AVG"):
    """The kernel of a Dense layer after a step with learning rate 0, its blocks pruned to ``share`` of zeros."""
    layer = tf_keras.layers.Dense(kernel.shape[1], use_bias=False)
    schedule = sparsity.ConstantSparsity(share, begin_step=0, frequency=1)
    model = tf_keras.Sequential(
        [sparsity.prune_low_magnitude(layer, schedule, block_size=block, block_pooling_type=pooling)]
    )
    model.build((None, kernel.shape[0]))
    layer.kernel.assign(kernel)
    model.compile(tf_keras.optimizers.SGD(0.0), "mse")
    data = np.zeros((1, kernel.shape[0])), np.zeros((1, kernel.shape[1]))
    model.fit(*data, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
    return layer.kernel.numpy()


def blocks_of(matrix, block):
    """[block rows, block columns, rows, columns]; NaN where a block at the edge has nothing."""
    rows, cols = (-(-side // size) for side, size in zip(matrix.shape, block))
    whole = np.full((rows * block[0], cols * block[1]), np.nan)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole.reshape(rows, block[0], cols, block[1]).swapaxes(1, 2)


print(*(f"{name} {version(name)}" for name in ("tensorflow-model-optimization", "tf_keras", "tensorflow-cpu")))
COLUMN = [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.1, 5, 1, 1]
for pooling in ("AVG", "MAX"):
    found = pruned(np.tile(np.array(COLUMN, np.float32)[:, None], 8), (4, 4), 1 / 3, pooling)
    print(f"rows of {COLUMN}, blocks of 4, one of three pruned by {pooling}: {[round(float(w), 1) for w in found[:, 0]]}")
    assert (found == found[:, :1]).all()
    assert np.array_equal(np.flatnonzero(found[:, 0] == 0), [4, 5, 6, 7]), "the behavior has changed: the small matrix"

BLOCK = (32, 32)
for shape, expected in (((768, 320), 60), ((767, 319), 60), ((784, 300), 48)):
    draw = np.random.default_rng(0)
    sizes = draw.lognormal(size=blocks_of(np.empty(shape), BLOCK).shape[:2]).repeat(32, 0).repeat(32, 1)
    kernel = (draw.standard_normal(shape) * sizes[: shape[0], : shape[1]]).astype(np.float32)
    found = blocks_of(pruned(kernel, BLOCK, 0.75), BLOCK)
    kept = np.nansum(np.abs(found), (2, 3)) > 0
    stored = ~np.isnan(found)
    assert ((found != 0) == kept[..., None, None])[stored].all()  # whole blocks, from row 0 and column 0 on
    means = np.nanmean(np.abs(blocks_of(kernel, BLOCK)), (2, 3))
    largest = means >= np.sort(means, None)[-kept.sum()]
    both = (kept & largest).sum()
    print(f"{shape[0]}×{shape[1]}: {kept.sum()} of {kept.size} blocks kept, {both} of them among the {kept.sum()} largest")
    assert both == expected, "the behavior has changed: other blocks"
PYTHON
