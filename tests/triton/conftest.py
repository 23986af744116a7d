"""Skips where Triton is not installed; a tuning table for one test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from efcn_sparse.ops.backends.triton import tuning
from tests.table import GPU


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes one configuration the nearest for every case of this machine, through a user's file."""

    def use(**config: int) -> None:
        arch = "interpreter" if not GPU else "sm90"
        table = tuple(
            tuning.Row(tuning.Case(operation, arch, bits, 32, 32, 64, 0.25), tuning.Config(**config), "a test")
            for operation, bits in itertools.product(tuning.OPERATIONS, (16, 32, 64))
        )
        tuning.write(tmp_path / "tuning.json", table)
        monkeypatch.setenv(tuning.OVERRIDE, str(tmp_path / "tuning.json"))
        tuning.forget()

    yield use
    tuning.forget()
