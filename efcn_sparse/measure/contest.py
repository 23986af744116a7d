"""Contestants timed in turn, A B A B …, so that what the machine does meanwhile meets all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OURS = "efcn_sparse"
_WARM_UP = 2
_LEAST_ROUNDS = 3
_RIVAL_BUDGET = 2.0  # seconds; a rival that has used them up after _LEAST_ROUNDS sits out
_LONG_CALL = 0.1  # seconds; from there on a call needs no untimed one before it to find the caches as it likes them


@dataclass(frozen=True)
class Spread:
    """The median of several numbers, with the quartiles beside it."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, numbers: list[float]) -> Spread:
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0], 1)
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high, len(numbers))


@dataclass
class Contest:
    """Named calls, timed round by round. In a round each contestant has one turn, ours the last.

    A turn is one untimed call, which finds the caches as the one before left them, then one timed call; calls of more
    than 0.1 s go without the first. Rivals whose calls add up to more than 2 s stop after three rounds.

    Example:
        >>> contest = Contest({"rival": lambda: sum(range(9999)), "efcn_sparse": lambda: None})
        >>> contest.run(3)
        >>> contest.ratio("rival", "efcn_sparse").median > 1
        True
    """

    contestants: Mapping[str, Callable[[], object]]
    ours: str = OURS
    samples: dict[str, list[float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ours not in self.contestants:
            raise ValueError(f"contestants must hold {self.ours!r}, got {sorted(self.contestants)}")
        self.samples = {name: [] for name in self.contestants}

    def warm_up(self) -> None:
        """Call everyone twice, or once if that takes over 0.1 s."""
        for call in self.contestants.values():
            for _ in range(_WARM_UP):
                if _timed(call) > _LONG_CALL:
                    break

    def rivals_turn(self) -> None:
        """The first part of a round: everyone but us, then one untimed call of ours."""
        for name in self.contestants:
            if name != self.ours:
                sits_out = self._rounds(name) >= _LEAST_ROUNDS and sum(self.times(name)) > _RIVAL_BUDGET
                self.samples[name].append(None if sits_out else self._turn(name))
        self._prepare(self.ours)

    def our_turn(self) -> None:
        """The second part of a round: one timed call of ours."""
        self.samples[self.ours].append(_timed(self.contestants[self.ours]))

    def run(self, rounds: int) -> None:
        """Warm up, then ``rounds`` rounds."""
        self.warm_up()
        for _ in range(rounds):
            self.rivals_turn()
            self.our_turn()

    def times(self, name: str) -> list[float]:
        """Seconds of each timed call of ``name``."""
        return [seconds for seconds in self.samples[name] if seconds is not None]

    def spread(self, name: str) -> Spread:
        """Seconds a call of ``name``."""
        return Spread.of(self.times(name))

    def ratio(self, numerator: str, denominator: str) -> Spread:
        """Time of one over time of another, taken in each round where both ran."""
        pairs = zip(self.samples[numerator], self.samples[denominator], strict=True)
        return Spread.of([first / second for first, second in pairs if first is not None and second is not None])

    def _turn(self, name: str) -> float:
        self._prepare(name)
        return _timed(self.contestants[name])

    def _prepare(self, name: str) -> None:
        times = self.times(name)
        if not times or times[-1] < _LONG_CALL:
            self.contestants[name]()

    def _rounds(self, name: str) -> int:
        return len(self.times(name))


def _timed(call: Callable[[], object]) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        del result
        return seconds
    finally:
        if collecting:
            gc.enable()
