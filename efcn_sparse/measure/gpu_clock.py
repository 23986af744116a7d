"""The time of a call on a GPU: the median over replays of a CUDA graph, with the L2 flushed before each call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_WARM_UPS, _SETTLING, _ROUNDS, _LEAST_FLUSH = 3, 2, 11, 256 << 20
_SHORT, _MIDDLE, _LONG = 2e-4, 1e-3, 2e-2  # seconds


@dataclass(frozen=True)
class Timing:
    """Median and quartiles over rounds; ``how`` says how it was taken."""

    seconds: float
    low: float
    high: float
    rounds: int
    how: str


def _timing(found: list[float], how: str) -> Timing:
    quartiles = statistics.quantiles(found, n=4) if len(found) > 1 else [found[0]] * 3
    return Timing(statistics.median(found), quartiles[0], quartiles[2], len(found), how)


class Clock:
    """Times calls on the current CUDA device.

    Before each call the L2 is filled with a buffer that is *read*: one that is written would leave dirty lines, whose
    way back to memory the timed call would pay. Several calls with their flushes form one graph, the flushes alone
    another; the time of a call is the difference of the two, so that the cost of launching a graph drops out. What the
    call leaves dirty in the L2 goes to memory during the next flush, and so counts as the call's.
    """

    def __init__(self) -> None:
        size = max(4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size, _LEAST_FLUSH)
        self._buffer = torch.ones(size // 4, device="cuda")
        self._sum = torch.zeros((), device="cuda")
        self._empty: dict[int, torch.cuda.CUDAGraph] = {}
        self._failed: list[torch.cuda.CUDAGraph] = []  # torch's allocator still asks them whether a capture is theirs

    def flush(self) -> None:
        """Read more than the L2 holds."""
        torch.sum(self._buffer, dim=0, out=self._sum)

    def time(self, call: Callable[[], Any]) -> Timing:
        """The median time of ``call``, which must be capturable.

        Raises:
            RuntimeError: it cannot be captured.
        """
        return self.time_together(call)[0]

    def time_together(self, *calls: Callable[[], Any]) -> list[Timing]:
        """The median times of calls that are compared: they take turns, so that all of them meet the same clocks.

        Raises:
            RuntimeError: one cannot be captured.
        """
        roughly = [self._warmed_up(call) for call in calls]
        repeats = [8 if one < _SHORT else 3 if one < _MIDDLE else 1 for one in roughly]
        graphs = [(self._flushes(n), self._captured(call, n)) for n, call in zip(repeats, calls, strict=True)]
        rounds = _ROUNDS if max(roughly) < _LONG else 5
        for _, graph in _SETTLING * graphs:
            graph.replay()
        events = [[[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in calls] for _ in range(rounds)]
        for turn in events:
            for (start, middle, end), (empty, graph) in zip(turn, graphs, strict=True):
                start.record()
                empty.replay()
                middle.record()
                graph.replay()
                end.record()
        torch.cuda.synchronize()
        timings = []
        for number, n in enumerate(repeats):
            took = [(m.elapsed_time(e) - s.elapsed_time(m)) * 1e-3 / n for s, m, e in (turn[number] for turn in events)]
            timings.append(_timing([max(seconds, 1e-9) for seconds in took], f"graph of {n}, L2 flushed"))
        return timings

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
        """The graph of some calls.

        Where a capture fails, torch 2.11 leaves its stream the current one and its random numbers in the graph, so that
        every later ``torch.randn`` on the device raises; a capture that succeeds puts that right.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for _ in range(repeats):
                    self.flush()
                    call()
        except Exception:
            self._failed.append(graph)
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                self.flush()
            raise
        graph.replay()
        return graph

    def _flushes(self, repeats: int) -> torch.cuda.CUDAGraph:
        if repeats not in self._empty:
            self._empty[repeats] = self._captured(lambda: None, repeats)
        return self._empty[repeats]


class DryClock(Clock):
    """For dry runs on a CPU: the wall, a call or two, no flush; its numbers say nothing."""

    def __init__(self) -> None:
        pass

    def time_together(self, *calls: Callable[[], Any]) -> list[Timing]:
        timings = []
        for call in calls:
            found = []
            for _ in range(2):
                began = time.perf_counter()
                call()
                found.append(time.perf_counter() - began)
            timings.append(_timing(found, "dry run"))
        return timings

    def time_eagerly(self, call: Callable[[], Any], rounds: int = 2) -> Timing:
        return self.time(call)
