"""Runs that several files look at, each made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from efcn_sparse.training import run_relax
from tests.training.runs import KINDS, slices_of


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the uninterrupted run of a kind."""

    @functools.cache
    def whole_run(kind: str) -> Path:
        with slices_of(kind):
            return run_relax(KINDS[kind], tmp_path_factory.mktemp(kind) / "run", quiet=True)

    return whole_run
