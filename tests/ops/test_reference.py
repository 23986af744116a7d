"""The reference backend multiplies some blocks at a time; how many changes nothing."""

from __future__ import annotations

import pytest
import torch

from efcn_sparse.ops.backends import reference
from tests.ops import laws
from tests.table import BFLOAT16, DEVICE, FLOAT64, PATTERNS, Row, dtype_name, pattern


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("dtype", [FLOAT64, BFLOAT16], ids=dtype_name)
@pytest.mark.parametrize("name", PATTERNS)
def test_a_few_blocks_at_a_time(
    name: str, dtype: torch.dtype, blocks: int, transpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, p = Row("reference", DEVICE, dtype), pattern(name, DEVICE)
    for chunk in ("_CHUNK", "_CHUNK_ON_CPU"):
        monkeypatch.setattr(reference, chunk, blocks * 11 * sum(p.block_shape))
    laws.gradients_are_dense(row, p, batch=11, transpose=transpose)
