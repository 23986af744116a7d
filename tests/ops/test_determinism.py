"""A result does not change from run to run, nor with the number of threads."""

from __future__ import annotations

import pytest

from tests.ops import laws
from tests.table import PATTERNS, Backend, Row, cases, pattern


def _steady(backend: Backend) -> bool:
    """Backends whose threads share the work: the interpreter has one."""
    return backend.threads_keep_bits and not backend.slow


UNEVEN = ("unbalanced", "long-rows", "masked-ragged", "entries", "ragged-long-rows", "tall-blocks")


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_run_to_run(row: Row, name: str) -> None:
    laws.results_repeat(row, pattern(name, row.device))


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS, where=_steady))
def test_one_thread_or_many(row: Row, name: str) -> None:
    laws.results_ignore_threads(row, pattern(name, row.device))


@pytest.mark.parametrize(("row", "name"), cases(UNEVEN, where=_steady))
@pytest.mark.parametrize("batch", [1, 7, 301, 1037])
def test_one_thread_or_many_at_odd_batches(row: Row, name: str, batch: int) -> None:
    laws.results_ignore_threads(row, pattern(name, row.device), batch=batch)
