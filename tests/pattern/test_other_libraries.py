"""Matrices of libraries that are no more developed, against the dense ones that those libraries computed.

``tests/pattern/data`` holds their arrays, written by the packages and versions in the files' names.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import efcn_sparse as es
from efcn_sparse.convert import from_pytorch_block_sparse, from_stk, from_torchao, to_layer

DATA = Path(__file__).parent / "data"
TORCHAO, STK, BLOCK_SPARSE = "torchao-0.18.0.npz", "stk-0.7.1.npz", "pytorch_block_sparse-0.1.2.npz"


def arrays(file, case):
    with np.load(DATA / file) as data:
        found = {key.split("/")[1]: torch.from_numpy(data[key]) for key in data.files if key.startswith(f"{case}/")}
    return {
        key: tuple(part.tolist()) if key in ("shape", "block_shape", "size") else part for key, part in found.items()
    }


def test_torchao():
    data = arrays(TORCHAO, "linear")
    pattern, values = from_torchao(SimpleNamespace(**data))
    assert values.data_ptr() == data["bsr_values"].data_ptr()
    assert (pattern.nnz_blocks, pattern.block_shape) == (4, (16, 16))
    assert torch.equal(pattern.to_dense(values), data["dense"])
    layer = to_layer(values, pattern, data["bias"])
    assert torch.allclose(layer(data["x"]), data["y"], atol=1e-4)
    layer(data["x"]).sum().backward()
    assert layer.values.grad.shape == values.shape


def stk_matrix(transposed=False, shuffle=None, batched=False):
    data = arrays(STK, "matrix")
    if shuffle is not None:
        data |= {name: data[name][shuffle] for name in ("data", "row_indices", "column_indices")}
    size = data.pop("size")
    size = (2, 12, size[1]) if batched else size[::-1] if transposed else size
    return SimpleNamespace(size=lambda: torch.Size(size), is_contiguous=lambda: not transposed, **data), data["dense"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shuffle", [None, torch.tensor([8, 3, 0, 5, 1, 7, 2, 6, 4])], ids=["by rows", "any order"])
def test_stk(transposed, shuffle):
    """``t()`` keeps the data and swaps the size."""
    matrix, dense = stk_matrix(transposed, shuffle)
    pattern, values = from_stk(matrix)
    assert pattern.nnz_blocks == 9
    assert torch.equal(pattern.to_dense(values), dense.T if transposed else dense)


@pytest.mark.parametrize("case", ["matrix", "moved", "rectangular", "emulator"])
def test_pytorch_block_sparse(case):
    """By rows; in another order, after ``block_replace``; blocks of 4×2; those of ``_dense``, after a training step."""
    data = arrays(BLOCK_SPARSE, case)
    matrix = SimpleNamespace(**data)
    for given in (matrix, SimpleNamespace(weight=matrix)):
        pattern, values = from_pytorch_block_sparse(given)
        assert torch.equal(pattern.to_dense(values), data["dense"])
    assert pattern.block_shape == data["block_shape"]
    assert torch.allclose(to_layer(values, pattern)(data["x"]), data["y"], atol=1e-3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: from_torchao(torch.ones(4, 4)),
            TypeError,
            "weight must be a BlockSparseTensor of torchao, got Tensor",
        ),
        (
            lambda: from_torchao(
                SimpleNamespace(**arrays(TORCHAO, "linear") | {"bsr_values": torch.ones(4, 16, 16).char()})
            ),
            TypeError,
            "got quantized ones of torch.int8",
        ),
        (
            lambda: from_stk(torch.ones(4, 4)),
            TypeError,
            "matrix must be an stk.Matrix, got Tensor without column_indices",
        ),
        (lambda: from_stk(stk_matrix(batched=True)[0]), ValueError, r"two dimensions, got \[2, 12, 40\]"),
        (
            lambda: from_stk(stk_matrix(shuffle=torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7]))[0]),
            ValueError,
            "each block once, got 9 at 8 places",
        ),
        (
            lambda: from_pytorch_block_sparse(torch.nn.Linear(2, 2)),
            TypeError,
            "layer must be a BlockSparseLinear or its",
        ),
        (
            lambda: to_layer(torch.ones(1, 2, 2), es.BlockPattern.dense((2, 2), (2, 2)), torch.ones(3)),
            ValueError,
            r"bias must be \[2\], got \[3\]",
        ),
    ],
    ids=["torchao", "quantized", "stk", "batched", "twice", "linear", "bias"],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
