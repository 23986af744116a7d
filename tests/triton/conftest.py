"""Skips where Triton is not installed; one tiling for a whole test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from efcn_sparse.ops.backends.triton import plan, tuning


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes one configuration that of every case, whatever the table says."""

    def use(**config: int | bool) -> None:
        chosen = tuning.Config(**config)
        monkeypatch.setattr(plan, "config_for", lambda case: chosen)

    return use
