#!/usr/bin/env bash
# jax 0.10.2 (jax.experimental.sparse) with optax 0.2.8: a training step on a BCOO or BCSR matrix.
#
# Expected: sparse.grad gives the gradient of the stored numbers, in the matrix's own format, so optax moves the numbers and
# leaves the index arrays alone; or it raises, since they are integers.
# Seen: the first step moves the indices, too. To optax, indices and numbers are leaves of one tree. In the gradient the
# indices stand where a gradient of indices would, and each optimizer takes them for one: SGD at lr 0.001 turns column 12
# into 12 - 0.012 and casts that to 11. So every index but 0 becomes one less: the entries of a BCOO move a row up and a
# column to the left, and in a BCSR the ends of the rows move as well. Nothing is raised, the dtype stays int32, and
# training goes on with another matrix. optax.global_norm counts the indices, too: here the gradient is 9 times as large
# to it as it is. Only some transformations, clip_by_global_norm among them, raise TypeError.
# Train the data array alone, and make the matrix from it and the fixed indices inside the loss: jax.grad then suffices.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'jax[cpu]==0.10.2' optax==0.2.8 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse

random = np.random.default_rng(0)
DENSE = np.where(random.random((64, 64)) < 0.1, random.normal(size=(64, 64)), 0).astype(np.float32)
X = jnp.asarray(random.normal(size=64), jnp.float32)


def loss(matrix):
    return jnp.square(matrix @ X).sum()


def step(optimizer, matrix):
    updates, _ = optimizer.update(sparse.grad(loss)(matrix), optimizer.init(matrix), matrix)
    return optax.apply_updates(matrix, updates)


print("jax", jax.__version__, "optax", optax.__version__)
for kind in (sparse.BCOO, sparse.BCSR):
    matrix = kind.fromdense(DENSE)
    for name, optimizer in {"sgd": optax.sgd(1e-3), "adam": optax.adam(1e-3), "adamw": optax.adamw(1e-3)}.items():
        moved = step(optimizer, matrix)
        print(f"{kind.__name__}, {name}: indices", matrix.indices[:3].tolist(), "after a step", moved.indices[:3].tolist())
        assert moved.indices.dtype == jnp.int32
        assert jnp.array_equal(moved.indices, jnp.maximum(matrix.indices - 1, 0)), "the behavior has changed: other indices"
        if kind is sparse.BCSR:
            assert jnp.array_equal(moved.indptr, jnp.maximum(matrix.indptr - 1, 0)), "the behavior has changed: other rows"

matrix = sparse.BCOO.fromdense(DENSE)


def of_data(data):
    return loss(sparse.BCOO((data, matrix.indices), shape=matrix.shape))


gradient = jax.grad(of_data)(matrix.data)
assert jnp.allclose(gradient, sparse.grad(loss)(matrix).data, rtol=1e-5)  # the numbers' gradient is right
right = sparse.BCOO((matrix.data - 1e-3 * gradient, matrix.indices), shape=matrix.shape)
wrong = step(optax.sgd(1e-3), matrix)
assert jnp.allclose(right.data, wrong.data, rtol=1e-5)
print(f"loss {loss(matrix):.0f}; after a step on the data {loss(right):.0f}, after the step on the matrix {loss(wrong):.0f}")
print("an entry of the matrix:", matrix.indices[100].tolist(), "after the step", wrong.indices[100].tolist())
assert not np.array_equal(np.asarray(right.todense()) != 0, np.asarray(wrong.todense()) != 0)

norm, counted = jnp.linalg.norm(gradient), optax.global_norm(sparse.grad(loss)(matrix))
print(f"norm of the gradient {norm:.0f}, by optax.global_norm {counted:.0f}")
assert jnp.allclose(counted, jnp.sqrt(norm**2 + jnp.square(matrix.indices.astype(jnp.float32)).sum()), rtol=1e-4)
assert counted > 3 * norm, "the behavior has changed: another norm"
try:
    optax.clip_by_global_norm(100.0).update(sparse.grad(loss)(matrix), optax.EmptyState())
except TypeError as error:
    print("clip_by_global_norm: TypeError:", str(error).splitlines()[0].split(" (Tip")[0])
else:
    raise AssertionError("the behavior has changed: clip_by_global_norm runs")
PYTHON
