"""Bad input to BlockPattern: refused with a message that names argument, expectation and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.sparse import bsr_array, csr_array

from efcn_sparse import BlockPattern
from efcn_sparse.convert import from_bsr, from_scipy, to_bsr, to_scipy
from tests.refused import BadCall, assert_refused

T = torch.tensor
P = BlockPattern.dense((4, 6), (2, 3))
RAGGED = BlockPattern.dense((5, 6), (2, 3))
MASK = torch.ones(4, 6, dtype=torch.bool)
ONES = torch.ones(1, 2, 3, dtype=torch.bool)


def _bsr(crow: Any = (0, 1, 2), col: Any = (0, 1), shape: Any = (4, 6), block: Any = (2, 3), **masks: Any) -> Any:
    crow, col = (T(index) if isinstance(index, tuple) else index for index in (crow, col))
    return lambda: BlockPattern.from_bsr(crow, col, shape, block, **masks)


def _blocks(rows: Any, cols: Any) -> Callable[[], Any]:
    return lambda: BlockPattern.from_blocks(rows, cols, (4, 6), (2, 3))


BAD: dict[str, BadCall] = {
    "shape-one-number": (_bsr(shape=4), ValueError, "shape must be two integers, got 4"),
    "shape-three": (_bsr(shape=(4, 6, 2)), ValueError, "shape must be two integers, got (4, 6, 2)"),
    "shape-words": (_bsr(shape="ab"), ValueError, "shape must be two integers, got 'ab'"),
    "shape-infinite": (_bsr(shape=(float("inf"), 6)), ValueError, "shape must be two integers, got (inf, 6)"),
    "shape-bool": (_bsr(shape=(True, 6)), ValueError, "shape must be two integers of at least 0, got (True, 6)"),
    "block-float": (_bsr(block=(2.0, 3)), ValueError, "block_shape must be two integers, got (2.0, 3)"),
    "shape-negative": (_bsr(shape=(-4, 6)), ValueError, "shape must be two integers of at least 0, got (-4, 6)"),
    "shape-fraction": (_bsr(shape=(4.5, 6)), ValueError, "shape must be two integers, got (4.5, 6)"),
    "block-zero": (_bsr(block=(0, 3)), ValueError, "block_shape must be two integers of at least 1, got (0, 3)"),
    "block-one-number": (_bsr(block=2), ValueError, "block_shape must be two integers, got 2"),
    "crow-floats": (_bsr(crow=T([0.0, 1.0, 2.0])), TypeError, "crow_indices must hold integers, got torch.float32"),
    "crow-bool": (_bsr(crow=T([False, True, True])), TypeError, "crow_indices must hold integers, got torch.bool"),
    "crow-square": (
        _bsr(crow=T([[0, 1, 2]])),
        ValueError,
        "crow_indices must have one dimension, got shape [1, 3]",
    ),
    "crow-meta": (
        _bsr(crow=torch.zeros(3, dtype=torch.int32, device="meta")),
        ValueError,
        "crow_indices must hold numbers, got a meta tensor of shape [3]",
    ),
    "crow-too-long": (_bsr(crow=(0, 1, 2, 2)), ValueError, "crow_indices must be [3], got [4]"),
    "crow-not-from-zero": (
        _bsr(crow=(1, 1, 2)),
        ValueError,
        "crow_indices must run from 0 to the 2 blocks of col_indices, got 1 to 2",
    ),
    "crow-not-to-the-end": (
        _bsr(crow=(0, 1, 1)),
        ValueError,
        "crow_indices must run from 0 to the 2 blocks of col_indices, got 0 to 1",
    ),
    "crow-decreases": (_bsr(crow=(0, 3, 2)), ValueError, "crow_indices must not decrease, got 3 then 2 at row 1"),
    "col-floats": (_bsr(col=T([0.5, 1.0])), TypeError, "col_indices must hold integers, got torch.float32"),
    "col-too-large": (_bsr(col=(0, 2)), ValueError, "col_indices must lie in [0, 2), got values from 0 to 2"),
    "col-negative": (_bsr(col=(-1, 1)), ValueError, "col_indices must lie in [0, 2), got values from -1 to 1"),
    "col-unsorted": (
        _bsr(crow=(0, 2, 2), col=(1, 0)),
        ValueError,
        "col_indices must increase strictly within a row, got 1 then 0 in row 0",
    ),
    "col-repeated": (
        _bsr(crow=(0, 0, 2), col=(1, 1)),
        ValueError,
        "col_indices must increase strictly within a row, got 1 then 1 in row 1",
    ),
    "masks-alone": (
        _bsr(masks=ONES),
        ValueError,
        "mask_index and masks must be given together, got masks only",
    ),
    "mask-index-alone": (
        _bsr(mask_index=T([0, 0])),
        ValueError,
        "mask_index and masks must be given together, got mask_index only",
    ),
    "masks-of-another-block": (
        _bsr(mask_index=T([0, 0]), masks=ONES.mT),
        ValueError,
        "masks must be [n, 2, 3], got [1, 3, 2]",
    ),
    "masks-flat": (
        _bsr(mask_index=T([0, 0]), masks=ONES[0]),
        ValueError,
        "masks must be [n, 2, 3], got [2, 3]",
    ),
    "masks-floats": (
        _bsr(mask_index=T([0, 0]), masks=ONES.float()),
        TypeError,
        "masks must be bool or uint8, got torch.float32",
    ),
    "mask-index-too-short": (
        _bsr(mask_index=T([0]), masks=ONES),
        ValueError,
        "mask_index must be [2], got [1]",
    ),
    "mask-index-too-large": (
        _bsr(mask_index=T([0, 1]), masks=ONES),
        ValueError,
        "mask_index must lie in [-1, 1), got values from 0 to 1",
    ),
    "mask-index-floats": (
        _bsr(mask_index=T([0.0, 0.0]), masks=ONES),
        TypeError,
        "mask_index must hold integers, got torch.float32",
    ),
    "generator-is-a-seed": (
        lambda: BlockPattern.random((4, 6), (2, 3), 0.5, generator=3),
        TypeError,
        "generator must be a torch.Generator or None, got 3",
    ),
    "blocks-floats": (_blocks(T([0.5]), T([0])), TypeError, "rows must hold integers, got torch.float32"),
    "blocks-of-two-lengths": (_blocks(T([0, 1]), T([0])), ValueError, "cols must be [2] as rows is, got [1]"),
    "blocks-square": (_blocks(T([[0]]), T([0])), ValueError, "rows must have one dimension, got shape [1, 1]"),
    "blocks-row-too-large": (
        _blocks(T([0, 2]), T([0, 0])),
        ValueError,
        "rows must lie in [0, 2), got values from 0 to 2",
    ),
    "blocks-col-negative": (
        _blocks(T([0, 1]), T([0, -1])),
        ValueError,
        "cols must lie in [0, 2), got values from -1 to 0",
    ),
    "mask-is-a-list": (
        lambda: BlockPattern.from_mask([[True]], (2, 3)),
        TypeError,
        "mask must be a tensor, got list",
    ),
    "mask-of-numbers": (
        lambda: BlockPattern.from_mask(MASK.float(), (2, 3)),
        ValueError,
        "mask must be a bool matrix, got torch.float32 of shape [4, 6]",
    ),
    "mask-three-dimensional": (
        lambda: BlockPattern.from_mask(MASK[None], (2, 3)),
        ValueError,
        "mask must be a bool matrix, got torch.bool of shape [1, 4, 6]",
    ),
    "mask-meta": (
        lambda: BlockPattern.from_mask(MASK.to("meta"), (2, 3)),
        ValueError,
        "mask must hold numbers, got a meta tensor of shape [4, 6]",
    ),
    "mask-of-blocks-of-another-grid": (
        lambda: BlockPattern.from_mask(MASK, (2, 3), shape=(4, 6)),
        ValueError,
        "mask must be [2, 2] for shape (4, 6) in blocks (2, 3), got [4, 6]",
    ),
    "density-above-one": (
        lambda: BlockPattern.random((4, 6), (2, 3), 1.5),
        ValueError,
        "density must lie in [0, 1], got 1.5",
    ),
    "density-not-a-number": (
        lambda: BlockPattern.random((4, 6), (2, 3), float("nan")),
        ValueError,
        "density must lie in [0, 1], got nan",
    ),
    "to-dense-values": (
        lambda: P.to_dense(torch.ones(3, 2, 3)),
        ValueError,
        "values must be [4, 2, 3], got [3, 2, 3]",
    ),
    "gather-dense": (lambda: P.gather(torch.ones(6, 4)), ValueError, "dense must be [4, 6], got [6, 4]"),
    "bsr-values": (
        lambda: to_bsr(torch.ones(3, 2, 3), P),
        ValueError,
        "values must be [4, 2, 3], got [3, 2, 3]",
    ),
    "bsr-ragged": (
        lambda: to_bsr(torch.ones(RAGGED.values_shape), RAGGED),
        ValueError,
        f"pattern must have sides that are multiples of its block for torch.sparse_bsr, got {RAGGED}",
    ),
    "bsr-of-dense": (
        lambda: from_bsr(torch.ones(4, 6)),
        ValueError,
        "matrix must be a two-dimensional sparse BSR tensor, got torch.strided, 2-D",
    ),
    "bsr-of-a-batch": (
        lambda: BlockPattern.from_bsr(torch.ones(2, 4, 6).to_sparse_bsr((2, 3))),
        ValueError,
        "matrix must be a two-dimensional sparse BSR tensor, got torch.sparse_bsr, 3-D",
    ),
    "bsr-and-more": (
        lambda: BlockPattern.from_bsr(torch.ones(4, 6).to_sparse_bsr((2, 3)), T([0]), (4, 6), (2, 3)),
        TypeError,
        "crow_indices must be given alone where it is a sparse BSR tensor",
    ),
    "bsr-parts-missing": (
        lambda: BlockPattern.from_bsr(T([0, 1])),
        TypeError,
        "col_indices, shape and block_shape must be given, unless the first is a sparse BSR tensor",
    ),
    "scipy-low": (
        lambda: to_scipy(torch.ones(4, 2, 3, dtype=torch.bfloat16), P),
        TypeError,
        "values must be float32 or float64 for SciPy, got torch.bfloat16",
    ),
    "scipy-values": (
        lambda: to_scipy(torch.ones(3, 2, 3), P),
        ValueError,
        "values must be [4, 2, 3], got [3, 2, 3]",
    ),
    "scipy-ragged": (
        lambda: to_scipy(torch.ones(RAGGED.values_shape), RAGGED),
        ValueError,
        f"pattern must have sides that are multiples of its block for scipy.sparse.bsr_array, got {RAGGED}",
    ),
    "scipy-csr": (
        lambda: from_scipy(csr_array((4, 6))),
        ValueError,
        "matrix must be a scipy.sparse.bsr_array, got csr_array; matrix.tobsr(blocksize=(rows, cols)) makes one",
    ),
    "scipy-dense": (
        lambda: from_scipy(bsr_array((4, 6), blocksize=(2, 3)).toarray()),
        ValueError,
        "matrix must be a scipy.sparse.bsr_array, got ndarray",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    assert_refused(*BAD[case])
