"""The laws on patterns, shapes, batches, dtypes and scalings that hypothesis makes up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efcn_sparse import BlockPattern
from tests.ops import laws
from tests.table import BACKENDS, BFLOAT16, DTYPES, FLOAT32, FLOAT64, GPU, Row

SIDES = st.one_of(st.integers(0, 40), st.integers(41, 150))
BLOCKS = st.tuples(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 32]), st.sampled_from([1, 2, 3, 6, 8, 16, 31, 32]))
LIMITS = settings(max_examples=15 if GPU else 40, deadline=None)  # each example compiles kernels on a GPU


@st.composite
def patterns(draw: st.DrawFn) -> BlockPattern:
    """Patterns of blocks, and patterns of entries with masks."""
    shape, block_shape = draw(st.tuples(SIDES, SIDES)), draw(BLOCKS)
    while shape[0] * shape[1] > 400 * block_shape[0] * block_shape[1]:  # the oracle walks the blocks in Python
        block_shape = (2 * block_shape[0], 2 * block_shape[1])
    density, seed = draw(st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0])), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        return BlockPattern.random(shape, block_shape, density, generator)
    return BlockPattern.from_mask(torch.rand(shape, generator=generator) < density, block_shape)


PRESENT = [backend for backend in BACKENDS if backend.missing() is None]
SLOW = [backend for backend in PRESENT if backend.slow]


@st.composite
def present_rows(draw: st.DrawFn, *, slow: bool = False) -> Row:
    backend = draw(st.sampled_from(SLOW if slow else [backend for backend in PRESENT if not backend.slow]))
    return Row(backend.name, backend.device, draw(st.sampled_from(backend.dtypes)))


@LIMITS
@given(row=present_rows(), p=patterns(), batch=st.integers(0, 40), transpose=st.booleans(), bias=st.booleans())
def test_spmm(row: Row, p: BlockPattern, batch: int, transpose: bool, bias: bool) -> None:
    laws.spmm_is_dense(row, p, batch=batch, transpose=transpose, bias=bias)


@LIMITS
@given(row=present_rows(), p=patterns(), batch=st.integers(0, 40))
def test_sddmm(row: Row, p: BlockPattern, batch: int) -> None:
    laws.sddmm_is_dense(row, p, batch=batch)


@LIMITS
@given(row=present_rows(), p=patterns(), batch=st.integers(0, 20), transpose=st.booleans())
def test_gradients(row: Row, p: BlockPattern, batch: int, transpose: bool) -> None:
    laws.gradients_are_dense(row, p, batch=batch, transpose=transpose)


@LIMITS
@given(row=present_rows(), p=patterns(), batch=st.integers(0, 40))
def test_adjoint(row: Row, p: BlockPattern, batch: int) -> None:
    laws.operations_are_adjoint(row, p, batch=batch)


@LIMITS
@given(
    row=present_rows(),
    p=patterns(),
    batch=st.integers(0, 20),
    alpha=st.sampled_from([1.0, -0.5, 2.0]),
    beta=st.sampled_from([0.0, 1.0, 0.25]),
)
def test_accumulation(row: Row, p: BlockPattern, batch: int, alpha: float, beta: float) -> None:
    laws.results_accumulate(row, p, batch=batch, alpha=alpha, beta=beta)


@pytest.mark.skipif(not SLOW, reason="no backend is slow here: all are among those of the tests above")
@settings(max_examples=6, deadline=None)
@given(row=present_rows(slow=True), p=patterns(), batch=st.integers(0, 20), transpose=st.booleans())
def test_slow_backends(row: Row, p: BlockPattern, batch: int, transpose: bool) -> None:
    laws.gradients_are_dense(row, p, batch=batch, transpose=transpose)
    laws.results_accumulate(row, p, batch=batch, alpha=-0.5, beta=0.25)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_backend_multiplies_every_dtype(backend: object) -> None:
    assert set(backend.dtypes) == set(DTYPES) >= {FLOAT64, FLOAT32, BFLOAT16}  # type: ignore[attr-defined]
