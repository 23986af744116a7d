"""Calls timed in turn, A B C A B C …, so that what the machine does meanwhile meets all of them alike."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

OURS = "efcn_sparse"
_LEAST_ROUNDS = 3
_RIVAL_SECONDS = 2.0
_LONG_CALL = 0.1  # seconds; from there on a call needs no untimed one before it to find the caches as it likes them


def in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each timed call, round by round.

    A turn is one untimed call, which finds the caches as the one before left them, then one timed call; calls of more
    than 0.1 s go without the first. Rivals that took 2 s in all stop after three rounds; ``efcn_sparse`` goes on.

    Example:
        >>> seconds = in_turn({"rival": lambda: sum(range(9999)), OURS: lambda: None}, rounds=3)
        >>> median_ratio(seconds["rival"], seconds[OURS]) > 1
        True
    """
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            own = seconds[name]
            if name != OURS and number >= _LEAST_ROUNDS and sum(own) > _RIVAL_SECONDS:
                continue
            if not own or own[-1] < _LONG_CALL:
                call()
            own.append(_timed(call, clock))
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios of the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=False))


@contextlib.contextmanager
def threads_set_to(threads: int) -> Iterator[None]:
    """Torch on ``threads`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = clock()
        result = call()
        seconds = clock() - start
        del result
        return seconds
    finally:
        if collecting:
            gc.enable()
