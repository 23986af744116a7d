"""pytest-benchmark: operations and training steps, each contestant beside its rivals.

``efcn-sparse bench`` times the same calls in turn, which is fairer on a machine that others use.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efcn_sparse.measure import ops, vanilla

CASES = {str(case): case for case in ops.cases("full")}
RIVALS = ("efcn_sparse", "dense", "onednn", "float32", "torch_sparse", "scipy")


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def calls(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, ops.contestants(CASES[request.param])[0]


@pytest.mark.parametrize("rival", RIVALS)
def test_op(benchmark: Any, calls: tuple[str, dict[str, Any]], rival: str) -> None:
    benchmark.group, found = calls
    if rival not in found:
        pytest.skip(f"{rival} does not multiply this")
    benchmark.pedantic(found[rival], rounds=7, warmup_rounds=1)


@pytest.fixture(scope="module")
def trainers() -> dict[str, vanilla.Trainer]:
    return vanilla.checked_trainers(batch=250)


@pytest.mark.benchmark(group="VanillaCNN training step, batch 250")
@pytest.mark.parametrize("variant", vanilla.VARIANTS)
def test_training_step(benchmark: Any, trainers: dict[str, vanilla.Trainer], variant: str) -> None:
    benchmark.pedantic(trainers[variant], rounds=7, warmup_rounds=1)
