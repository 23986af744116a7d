"""torch.sparse_bsr and scipy.sparse.bsr_array both ways, with no dense matrix between."""

from __future__ import annotations

import warnings

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
    values = _values(p)
    matrix = to_bsr(values, p)
    assert (matrix.layout, tuple(matrix.shape)) == (torch.sparse_bsr, p.shape)
    assert matrix.values().data_ptr() == values.data_ptr()
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
    values = _values(p)
    matrix = to_scipy(values, p)
    assert (matrix.format, matrix.shape, matrix.blocksize) == ("bsr", p.shape, p.block_shape)
    assert values.numel() == 0 or np.shares_memory(matrix.data, values.numpy())
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


def test_scipy_does_not_reach_into_the_pattern() -> None:
    p = pattern("full")
    before = [tensor.clone() for tensor in p.structure]
    matrix = to_scipy(torch.zeros(p.values_shape), p)
    matrix.eliminate_zeros()
    assert matrix.nnz == 0
    assert all(torch.equal(now, then) for now, then in zip(p.structure, before, strict=True))
