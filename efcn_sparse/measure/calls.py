"""What a call costs where there is little to compute: a small layer beside ``nn.Linear``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from efcn_sparse.linear import SparseLinear
from efcn_sparse.measure.timing import OURS, in_turn, median_ratio
from efcn_sparse.pattern import BlockPattern

_REPEATS = 200  # calls in one timing


def rows(rounds: int, clock: Callable[[], float] = time.perf_counter, size: int = 64, batch: int = 32) -> list[dict]:
    """The table: a call of a ``[size, size]`` layer with a quarter of its blocks of 16, forward, and backward too."""
    pattern = BlockPattern.random((size, size), (16, 16), 0.25, torch.Generator().manual_seed(1906))
    layers = {"dense": nn.Linear(size, size), OURS: SparseLinear(size, size, pattern)}
    x, dy = torch.randn(batch, size, requires_grad=True), torch.randn(batch, size)

    def repeated(layer: nn.Module, backward: bool) -> Callable[[], None]:
        def call() -> None:
            for _ in range(_REPEATS):
                with torch.set_grad_enabled(backward):
                    y = layer(x)
                if backward:
                    y.backward(dy)

        return call

    found: list[dict[str, Any]] = []
    for backward in (False, True):
        seconds = in_turn({name: repeated(layer, backward) for name, layer in layers.items()}, rounds, clock)
        micro = {name: 1e6 * statistics.median(times) / _REPEATS for name, times in seconds.items()}
        found.append(
            {
                "call": f"{size}×{size}, batch {batch}, forward" + (" and backward" if backward else ""),
                "µs": micro[OURS],
                "nn.Linear, µs": micro["dense"],
                "to nn.Linear": median_ratio(seconds[OURS], seconds["dense"]),
            }
        )
    return found
