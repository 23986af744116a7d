"""Configurations that are worth trying fit the device, are distinct, and reach past the present one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from efcn_sparse.ops.backends.triton import plan, search
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tuning import OPERATIONS
from efcn_sparse.pattern import BlockPattern

H100 = Device("sm90", 132, 227 * 1024, "H100")


def _problem(operation: str, block: tuple[int, int], batch: int, device: Device = H100) -> plan.Problem:
    pattern = BlockPattern.random((2048, 1536), block, 0.1, torch.Generator().manual_seed(3))
    return plan.Problem.of(operation, pattern, batch, torch.bfloat16, device)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("block", [(128, 128), (64, 64), (16, 16), (24, 48)])
@pytest.mark.parametrize("batch", [256, 8192])
def test_alternatives(operation: str, block: tuple[int, int], batch: int) -> None:
    problem = _problem(operation, block, batch)
    present = plan.configure(problem)
    found = search.alternatives(problem, present, 100)
    assert present not in found
    assert len(set(found)) == len(found) > 5
    assert all(search.fits(problem, config) for config in found)
    assert all(config.members >= 1 for config in found)  # settled, as the model and the schedules want them
    assert {(c.block_m, c.block_n) for c in found} - {(present.block_m, present.block_n)}  # other tiles
    assert {c for c in found if replace(c, stages=present.stages) == present}  # and the same one, loaded otherwise
    assert search.alternatives(problem, present, 3) == found[:3]
    assert search.alternatives(problem, present, 100) == found


def test_a_tile_is_also_tried_two_at_a_time() -> None:
    problem = _problem("spmm", (128, 128), 8192)
    found = search.alternatives(problem, plan.configure(problem), 100)
    of_128 = {c.stages for c in found if (c.block_m, c.block_n, c.block_k) == (128, 128, 64)}
    assert {4, 3} <= of_128  # 96 KiB in 3 stages: two fit; in 4 one does
    two = 2 * (plan.shared_memory(replace(found[0], block_m=128, block_n=128, block_k=64, stages=3), 2) + 1024)
    assert two <= H100.shared_memory + 1024 < two * 4 / 3


def test_little_shared_memory_leaves_what_fits() -> None:
    small = Device("sm86", 84, 99 * 1024, "a small one")
    problem = _problem("spmm", (64, 64), 4096, small)
    found = search.alternatives(problem, plan.configure(problem), 100)
    assert found
    assert all(plan.shared_memory(config, 2) <= small.shared_memory for config in found)
