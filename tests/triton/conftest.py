"""Skips where Triton is not installed; one tiling for a whole test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from efcn_sparse.ops.backends.triton import tuning
from efcn_sparse.ops.backends.triton.tiles import Config


@pytest.fixture
def tuned() -> Iterator[Callable[..., None]]:
    """Makes one configuration that of every case, whatever rules and rows say."""
    with ExitStack() as stack:
        yield lambda **config: stack.enter_context(tuning.only(Config(**config)))
