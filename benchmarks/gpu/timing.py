"""The time of a call on a GPU: the median over replays of a CUDA graph, with the L2 flushed before each call."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu.capture import captured

_WARM_UPS, _ROUNDS, _LEAST_FLUSH = 3, 11, 256 << 20
_SHORT, _MIDDLE, _LONG = 2e-4, 1e-3, 2e-2  # seconds


@dataclass(frozen=True)
class Timing:
    """Median and quartiles over rounds; ``how`` says how it was taken."""

    seconds: float
    low: float
    high: float
    rounds: int
    how: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


def _timing(found: list[float], how: str) -> Timing:
    quartiles = statistics.quantiles(found, n=4) if len(found) > 1 else [found[0]] * 3
    return Timing(statistics.median(found), quartiles[0], quartiles[2], len(found), how)


class Clock:
    """Times calls on the current CUDA device.

    Before each call the L2 is filled with a buffer that is *read*: one that is written would leave dirty lines, whose
    way back to memory the timed call would pay. Several calls with their flushes form one graph, the flushes alone
    another; the time of a call is the difference of the two, so that the cost of launching a graph drops out.
    """

    def __init__(self) -> None:
        size = max(4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size, _LEAST_FLUSH)
        self._buffer = torch.ones(size // 4, device="cuda")
        self._sum = torch.zeros((), device="cuda")

    def flush(self) -> None:
        """Read more than the L2 holds."""
        torch.sum(self._buffer, dim=0, out=self._sum)

    def time(self, call: Callable[[], Any]) -> Timing:
        """The median time of ``call``, which must be capturable.

        Raises:
            RuntimeError: it cannot be captured.
        """
        roughly = self._warmed_up(call)
        repeats = 8 if roughly < _SHORT else 3 if roughly < _MIDDLE else 1
        rounds = _ROUNDS if roughly < _LONG else 5
        graph, empty = self._captured(call, repeats), self._flushes(repeats)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(rounds)]
        for start, middle, end in events:
            start.record()
            empty.replay()
            middle.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        found = [(m.elapsed_time(e) - s.elapsed_time(m)) * 1e-3 / repeats for s, m, e in events]
        return _timing([max(seconds, 1e-9) for seconds in found], f"graph of {repeats}, L2 flushed")

    def time_eagerly(self, call: Callable[[], Any], rounds: int = 5) -> Timing:
        """The median time of ``call`` between two events, launched one by one, L2 not flushed: for whole steps."""
        self._warmed_up(call)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return _timing([start.elapsed_time(end) * 1e-3 for start, end in events], "eager")

    def time_either_way(self, call: Callable[[], Any]) -> Timing:
        """By graph, or eagerly if that cannot be."""
        try:
            return self.time(call)
        except RuntimeError:
            torch.cuda.synchronize()
            return self.time_eagerly(call)

    def _warmed_up(self, call: Callable[[], Any]) -> float:
        """Compile and settle on a side stream, as capturing wants it; the seconds of the last call, roughly."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                side.synchronize()
                began = time.perf_counter()
                call()
                side.synchronize()
        torch.cuda.current_stream().wait_stream(side)
        return time.perf_counter() - began

    def _captured(self, call: Callable[[], Any], repeats: int) -> torch.cuda.CUDAGraph:
        def body() -> None:
            for _ in range(repeats):
                self.flush()
                call()

        graph = captured(body, self.flush)
        graph.replay()
        return graph

    @functools.cache  # noqa: B019  there is one clock in a process
    def _flushes(self, repeats: int) -> torch.cuda.CUDAGraph:
        return self._captured(lambda: None, repeats)


class DryClock(Clock):
    """For dry runs on a CPU: the wall, a call or two, no flush; its numbers say nothing."""

    def __init__(self) -> None:
        pass

    def time(self, call: Callable[[], Any]) -> Timing:
        found = []
        for _ in range(2):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
        return _timing(found, "dry run")

    def time_eagerly(self, call: Callable[[], Any], rounds: int = 2) -> Timing:
        return self.time(call)
