"""torch.sparse_bsr and scipy.sparse.bsr_array both ways, with no dense matrix between."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse import bsr_array

from efcn_sparse import BlockPattern
from efcn_sparse.convert import from_bsr, from_scipy, to_bsr, to_scipy
from tests import oracle
from tests.table import PATTERNS, pattern

WHOLE = [name for name in PATTERNS if not pattern(name).is_ragged]
UNMASKED = [name for name in WHOLE if pattern(name).masks.shape[0] == 0]


@pytest.fixture(autouse=True)
def quiet_beta_warning() -> object:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta state.*")
        yield


@pytest.fixture(autouse=True)
def no_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that goes through the dense matrix fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("went through the dense matrix")

    monkeypatch.setattr(BlockPattern, "to_dense", refuse)
    monkeypatch.setattr(BlockPattern, "gather", refuse)


def _values(p: BlockPattern, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.where(oracle.support_of(p), torch.randn(p.values_shape, dtype=dtype), 0.0)


@pytest.mark.parametrize("name", WHOLE)
def test_to_torch(name: str) -> None:
    p = pattern(name)
    values = torch.randn(p.values_shape, dtype=torch.float64)
    matrix = to_bsr(values, p)
    assert (matrix.layout, tuple(matrix.shape)) == (torch.sparse_bsr, p.shape)
    assert (matrix.values().data_ptr() == values.data_ptr()) == (name in UNMASKED)
    assert torch.equal(matrix.to_dense(), oracle.dense(values, p))


@pytest.mark.parametrize("name", UNMASKED)
def test_torch_and_back(name: str) -> None:
    p = pattern(name)
    values = _values(p, torch.float32)
    again, same = from_bsr(to_bsr(values, p))
    assert again == p
    assert same.data_ptr() == values.data_ptr()
    assert torch.equal(same, values)


def test_from_a_matrix_that_torch_made() -> None:
    p = pattern("square")
    dense = oracle.dense(_values(p), p)
    again, values = from_bsr(dense.to_sparse_bsr(p.block_shape))
    assert again == p
    assert torch.equal(oracle.dense(values, again), dense)


@pytest.mark.parametrize("name", WHOLE)
def test_to_scipy(name: str) -> None:
    p = pattern(name)
    values = torch.randn(p.values_shape, dtype=torch.float64).mT.contiguous().mT  # each block by columns
    matrix = to_scipy(values, p)
    assert matrix.data.flags.c_contiguous
    assert (matrix.format, matrix.shape, matrix.blocksize) == ("bsr", p.shape, p.block_shape)
    assert not np.shares_memory(matrix.data, values.numpy())
    assert np.array_equal(matrix.toarray(), oracle.dense(values, p).numpy())


@pytest.mark.parametrize("name", UNMASKED)
def test_scipy_and_back(name: str) -> None:
    p = pattern(name)
    values = _values(p, torch.float32)
    again, same = from_scipy(to_scipy(values, p))
    assert again == p
    assert torch.equal(same, values)


def test_scipy_out_of_order_with_duplicates() -> None:
    data = np.arange(16, dtype=np.float64).reshape(4, 2, 2)
    matrix = bsr_array((data.copy(), np.array([1, 0, 1, 0]), np.array([0, 3, 4])), shape=(4, 4), blocksize=(2, 2))
    p, values = from_scipy(matrix)
    assert (p.crow_indices.tolist(), p.col_indices.tolist()) == ([0, 2, 3], [0, 1, 0])
    assert np.array_equal(oracle.dense(values, p).numpy(), matrix.toarray())
    assert np.array_equal(matrix.data, data), "the given matrix was changed"


def test_scipy_reaches_neither_into_the_pattern_nor_into_the_values() -> None:
    p = pattern("full")
    values = torch.randn(p.values_shape)
    values[0] = 0.0
    before = [tensor.clone() for tensor in (*p.structure, values)]
    matrix = to_scipy(values, p)
    matrix.eliminate_zeros()
    assert matrix.nnz == values[1:].numel()
    matrix.data[:] = 7
    assert all(torch.equal(now, then) for now, then in zip((*p.structure, values), before, strict=True))
    again, copied = from_scipy(matrix)
    matrix.data[:] = matrix.indices[:] = 0
    assert (again.nnz_blocks, float(copied.min())) == (p.nnz_blocks - 1, 7.0)


def test_a_pattern_of_a_torch_matrix() -> None:
    p = pattern("square")
    assert BlockPattern.from_bsr(to_bsr(torch.randn(p.values_shape), p)) == p


@pytest.mark.parametrize("turn", [lambda mask: mask, np.transpose, np.flipud, lambda mask: mask[:, ::2]])
def test_masks_of_numpy(turn: Callable[[np.ndarray], np.ndarray]) -> None:
    mask = turn(np.random.default_rng(0).random((12, 12)) < 0.3)
    mask.flags.writeable = False
    assert BlockPattern.from_mask(mask, (4, 3)) == BlockPattern.from_mask(torch.tensor(mask.copy()), (4, 3))
