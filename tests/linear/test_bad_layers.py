"""Bad input to SparseLinear: refused with a message that names argument, expectation and what came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.nn.utils import prune

import efcn_sparse as es
from efcn_sparse import BlockPattern, extension
from efcn_sparse.training.run.metrics import METRICS, read_evaluations
from tests.refused import BadCall, assert_refused

P = BlockPattern.dense((6, 8), (3, 4))
LAYER = es.SparseLinear(8, 6, P)


def _from(linear: Any, density: float = 0.5, block_shape: Any = (4, 4)) -> Callable[[], Any]:
    return lambda: es.SparseLinear.from_linear(linear, density=density, block_shape=block_shape)


BAD: dict[str, BadCall] = {
    "pattern-is-a-mask": (
        lambda: es.SparseLinear(8, 6, torch.ones(6, 8)),
        TypeError,
        "pattern must be a BlockPattern, got Tensor",
    ),
    "pattern-is-missing": (
        lambda: es.SparseLinear(8, 6, None),
        TypeError,
        "pattern must be a BlockPattern, got NoneType",
    ),
    "pattern-and-density": (
        lambda: es.SparseLinear(8, 6, P, density=0.5),
        ValueError,
        "pattern, or density and block_shape, must be given, got pattern and density",
    ),
    "density-alone": (
        lambda: es.SparseLinear(8, 6, density=0.5),
        ValueError,
        "pattern, or density and block_shape, must be given, got density",
    ),
    "sides-swapped": (lambda: es.SparseLinear(6, 8, P), ValueError, "pattern must be [8, 6], got [6, 8]"),
    "sides-of-another": (lambda: es.SparseLinear(8, 7, P), ValueError, "pattern must be [7, 8], got [6, 8]"),
    "x-too-wide": (lambda: LAYER(torch.ones(2, 9)), ValueError, "x must be [..., 8], got [2, 9]"),
    "x-scalar": (lambda: LAYER(torch.tensor(1.0)), ValueError, "x must be [..., 8], got []"),
    "x-is-a-list": (lambda: LAYER([1.0]), TypeError, "x must be a tensor, got list"),
    "x-of-integers": (
        lambda: LAYER(torch.ones(2, 8, dtype=torch.int64)),
        TypeError,
        "x must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    "x-of-another-dtype": (
        lambda: LAYER(torch.ones(2, 8, dtype=torch.float64)),
        TypeError,
        "x must have the dtype of values, torch.float32, got torch.float64",
    ),
    "x-on-another-device": (
        lambda: LAYER(torch.ones(2, 8, device="meta")),
        ValueError,
        "x must be on the device of values, cpu, got meta",
    ),
    "from-a-convolution": (
        _from(nn.Conv1d(1, 1, 1)),
        TypeError,
        "linear must be an nn.Linear, got Conv1d",
    ),
    "from-a-lazy-one": (
        _from(nn.LazyLinear(6)),
        ValueError,
        "linear must have a weight, got a lazy one without; run it once first",
    ),
    "density-is-text": (
        lambda: es.SparseLinear(8, 6, density="x", block_shape=(4, 4)),
        TypeError,
        "density must be a number in [0, 1], got 'x'",
    ),
    "features-are-fractions": (
        lambda: es.SparseLinear(8.0, 6, density=0.5, block_shape=(4, 4)),
        ValueError,
        "shape must be two integers, got (6, 8.0)",
    ),
    "dtype-complex": (
        lambda: es.SparseLinear(8, 6, P, dtype=torch.complex64),
        TypeError,
        "dtype must be float64, float32, bfloat16 or float16, got torch.complex64",
    ),
    "dtype-is-text": (
        lambda: es.SparseLinear(8, 6, P, dtype="float32"),
        TypeError,
        "dtype must be float64, float32, bfloat16 or float16, got 'float32'",
    ),
    "weight-assigned": (
        lambda: setattr(LAYER, "weight", nn.Parameter(torch.ones(6, 8))),
        TypeError,
        "SparseLinear(8, 6): weight cannot be a parameter, since weight is made of values at each reading: tie or "
        "prune values, or take to_linear()",
    ),
    "weight-pruned": (
        lambda: prune.l1_unstructured(es.SparseLinear(8, 6, P), "weight", 0.5),
        TypeError,
        "SparseLinear(8, 6): weight_orig cannot be a parameter, since weight is made of values at each reading: tie or "
        "prune values, or take to_linear()",
    ),
    "x-is-an-array": (lambda: LAYER(np.zeros((2, 8))), TypeError, "x must be a tensor, got ndarray"),
    "matrix-without-blocks": (
        lambda: es.convert.from_scipy(scipy.sparse.csr_array((6, 8))),
        ValueError,
        "matrix must be a scipy.sparse.bsr_array, got csr_array; matrix.tobsr(blocksize=(rows, cols)) makes one",
    ),
    "density-negative": (_from(nn.Linear(8, 6), density=-0.1), ValueError, "density must lie in [0, 1], got -0.1"),
    "block-negative": (
        _from(nn.Linear(8, 6), block_shape=(4, -4)),
        ValueError,
        "block_shape must be two integers of at least 1, got (4, -4)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    assert_refused(*BAD[case])


def test_a_layer_without_blocks_is_told() -> None:
    with pytest.warns(UserWarning, match="^density=0 stores no block, so the output is the bias alone"):
        es.SparseLinear(8, 6, density=0, block_shape=(4, 4))


def test_an_extension_of_an_earlier_version_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_NEEDED", ("usual_spmm", "what_only_a_later_one_has"))
    status = extension.extension_status.__wrapped__()
    assert not status.available
    if not extension.extension_is_off() and extension.extension_status().available:
        assert status.reason.endswith("is older than the Python code; rebuild the extension")


def test_other_bytes_at_the_end_of_a_table_are_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(",".join(METRICS).encode() + b"\n\xff\xfe\x00")
    rows, wrong = read_evaluations(path, METRICS)
    assert (rows, wrong) == ([], [f"{path} must be UTF-8, got other bytes in its last line"])
