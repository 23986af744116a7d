"""Tiles of x through tensor descriptors: the same results, and only where device, layout and tiles suit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from efcn_sparse.ops.backends.triton import descriptors
from efcn_sparse.ops.backends.triton.device import Device
from efcn_sparse.ops.backends.triton.tuning import Config
from efcn_sparse.pattern import BlockPattern
from tests.ops import laws
from tests.table import COMPILED, DEVICE, GPU, Row, needs_triton

pytestmark = needs_triton

HOPPER = Device("sm90", 132, 227 * 1024)
CONFIG = Config(32, 16, 16, members=2, descriptors=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [32, 45, 70])
def test_results_are_the_same(
    tuned: Callable[..., None], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, batch: int
) -> None:
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no copy engine")
    described = []
    monkeypatch.setattr(
        descriptors, "describe", lambda x, config, make=descriptors.describe: described.append(x) or make(x, config)
    )
    tuned(block_m=32, block_n=16, block_k=16, members=2, pieces=2, descriptors=True)
    mask = torch.rand(9, 7) < 0.4
    mask[4], mask[:, 2] = False, False
    found = BlockPattern.from_mask(mask.repeat_interleave(16, 0).repeat_interleave(32, 1), (16, 32)).to(DEVICE)
    laws.results_accumulate(Row("triton", DEVICE, dtype), found, batch=batch, alpha=-0.5, beta=0.75)
    assert len(described) >= 2  # both walks


def test_what_does_not_suit_is_loaded_as_ever() -> None:
    x = torch.zeros(64, 96)
    assert descriptors.fits(x, 32, CONFIG, HOPPER)
    assert not descriptors.fits(x, 32, CONFIG, replace(HOPPER, arch="sm80"))
    assert not descriptors.fits(x, 32, CONFIG, replace(HOPPER, arch="gfx942"))
    assert not descriptors.fits(x, 24, CONFIG, HOPPER)  # a step over two blocks
    assert not descriptors.fits(x, 64, CONFIG, HOPPER)  # a ragged edge
    assert not descriptors.fits(x.double(), 32, CONFIG, HOPPER)
    assert not descriptors.fits(x[:0], 32, CONFIG, HOPPER)
    assert not descriptors.fits(torch.zeros(64, 97)[:, :96], 32, CONFIG, HOPPER)  # rows that are not aligned
    assert not descriptors.fits(torch.zeros(64, 100)[:, 1:97], 32, CONFIG, HOPPER)  # nor is the first one
    assert descriptors.fits(torch.zeros(64, 100)[:, 4:], 32, CONFIG, HOPPER)
    assert not descriptors.fits(x, 32, replace(CONFIG, block_m=512), HOPPER)


def test_bad_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="descriptors must be true or false, got 1"):
        Config(16, 16, 16, descriptors=1)  # type: ignore[arg-type]


@pytest.mark.skipif(GPU and not COMPILED, reason="the GPU is the host's memory, where nothing is compiled")
def test_kernels_fetch_tiles() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.gpu.compile_ahead", "--descriptors", "--arch", "sm90", "--limit", "4"]
    done = subprocess.run(
        [*command, "--json"], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    described = [kernel for kernel in json.loads(done.stdout)["kernels"] if kernel["described"]]
    assert described
    assert all(kernel["tiles_fetched"] > 0 for kernel in described)
