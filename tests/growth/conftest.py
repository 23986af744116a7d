"""Small layers must take many tiles."""

from __future__ import annotations

import pytest

from efcn_sparse.fused import workspace


@pytest.fixture(params=[2 << 10, 64 << 20], ids=["many-tiles", "one-tile"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workspace.SCORING_BYTES, "cpu", request.param)
