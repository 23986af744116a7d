"""A fixed few of the random cases of ``tests/fuzz.py``, which says how to run more of them."""

from __future__ import annotations

import pytest

from tests import fuzz
from tests.table import BACKENDS, DTYPES, GPU

PRESENT = [backend for backend in BACKENDS if backend.missing() is None]
QUICK = [backend.name for backend in PRESENT if not backend.slow]
SLOW = [backend.name for backend in PRESENT if backend.slow]


@pytest.mark.parametrize("tens", range(4 if GPU else 12))  # each case compiles kernels on a GPU
def test_ten_cases(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        fuzz.run(seed, QUICK)


@pytest.mark.skipif(not SLOW, reason="no backend is slow here: all are among those of the test above")
@pytest.mark.parametrize("seed", range(6))
def test_slow_backends(seed: int) -> None:
    fuzz.run(seed, SLOW)


def test_every_backend_multiplies_every_dtype() -> None:
    assert all(set(backend.dtypes) == set(DTYPES) for backend in BACKENDS)
