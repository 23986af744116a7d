"""The laws hold however the work is cut: super-rows, split rows and batches, tiles wider and narrower than blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.ops import laws
from tests.table import DEVICE, Row, needs_triton, pattern

pytestmark = needs_triton

TILINGS = {
    "pairs-of-rows": dict(block_m=16, block_n=32, block_k=16, members=2, pieces=2, swizzle=3),
    "threes-of-rows": dict(block_m=32, block_n=16, block_k=32, members=3, pieces=1, swizzle=1),
    "large-tiles": dict(block_m=32, block_n=64, block_k=64, members=4, pieces=3),
    "stored-in-halves": dict(block_m=64, block_n=256, block_k=64, members=16, pieces=2),
    "stored-in-eighths": dict(block_m=256, block_n=128, block_k=64, members=8, pieces=1),
    "by-rule": dict(block_m=64, block_n=128, block_k=16, members=0, pieces=0),
}
OTHERS = ("masked-partly", "odd-blocks", "unbalanced", "empty-rows-and-columns", "tall-blocks")
# the pattern with masks and ragged edges under all of them, the others under two, each under other ones
CASES = [(tiling, "masked-ragged") for tiling in TILINGS] + [
    (list(TILINGS)[(number + step) % len(TILINGS)], name) for number, name in enumerate(OTHERS) for step in (0, 2)
]
ROW = Row("triton", DEVICE, torch.float32)


@pytest.mark.parametrize(("tiling", "name"), CASES)
def test_results_accumulate(tuned: Callable[..., None], tiling: str, name: str) -> None:
    tuned(**TILINGS[tiling])
    laws.results_accumulate(ROW, pattern(name).to(ROW.device), batch=19, alpha=-0.5, beta=0.75)


@pytest.mark.parametrize("tiling", ["pairs-of-rows", "large-tiles", "by-rule"])
def test_large_batches(tuned: Callable[..., None], tiling: str) -> None:
    tuned(**TILINGS[tiling])
    laws.results_accumulate(ROW, pattern("masked-ragged").to(ROW.device), batch=70, alpha=1.0, beta=0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype(tuned: Callable[..., None], dtype: torch.dtype) -> None:
    tuned(**TILINGS["pairs-of-rows"])
    laws.results_accumulate(ROW._replace(dtype=dtype), pattern("unbalanced").to(ROW.device), alpha=0.1, beta=0.3)
