"""Locally connected layers, forward and backward, ours beside Flax's and unfold + bmm, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efcn_sparse.measure.memory import with_this_package
from efcn_sparse.measure.timing import OURS, in_turn, median_ratio
from efcn_sparse.sizes import size_text

UNFOLD, FLAX = "unfold + bmm", "Flax ConvLocal"
_WORKER = Path(__file__).with_name("worker.py")
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Layer:
    """``inputs`` channels of ``size`` × ``size`` to ``outputs`` channels."""

    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int
    padding: int

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.inputs}→{self.outputs}, {self.kernel}×{self.kernel}{stride}, on {self.size}×{self.size}"


VANILLA = (Layer(3, 64, 32, 4, 2, 2), Layer(64, 64, 8, 5, 1, 2), Layer(64, 64, 3, 3, 1, 1))


class Process:
    """One rival; a call makes it run forward and backward once.

    Attributes:
        ready: what it said first: ``digest`` of its results, ``peak`` in bytes or None, ``versions`` of packages.

    Raises:
        RuntimeError: it ended, with what it wrote to stderr.
    """

    def __init__(self, python: str, rival: str, layer: Layer, batch: int, threads: int) -> None:
        given = json.dumps({**asdict(layer), "rival": rival, "batch": batch, "threads": threads})
        self._process = subprocess.Popen(
            [python, str(_WORKER), given],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=with_this_package(),
        )  # fmt: skip
        self.ready = json.loads(self._answer())

    def __call__(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            told = self._process.stderr.read().strip().splitlines()
            raise RuntimeError(told[-1] if told else f"{_WORKER.name} ended")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def processes(layer: Layer, batch: int, threads: int, flax_python: str) -> Iterator[tuple[dict[str, Process], str]]:
    """The rivals by name, ours last, and why Flax is not among them, or nothing.

    Raises:
        AssertionError: a rival computes something else than we do.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Process] = {}
        missing = ""
        for rival in (FLAX, UNFOLD, OURS):
            try:
                found[rival] = Process(flax_python if rival == FLAX else sys.executable, rival, layer, batch, threads)
            except (RuntimeError, OSError) as error:
                if rival != FLAX:
                    raise
                missing = str(error)
            else:
                stack.callback(found[rival].close)
        ours = found[OURS].ready["digest"]
        for rival, process in found.items():
            for what, numbers in process.ready["digest"].items():
                off = [abs(one - other) for one, other in zip(numbers, ours[what], strict=True)]
                if not all(one <= _TOLERANCE * ours[what][1] for one in off):  # max() of NaN may be another
                    raise AssertionError(f"{rival} must agree in {what} of {layer}, got {numbers}, not {ours[what]}")
        yield found, missing


def rows(batch: int, rounds: int, threads: int, flax_python: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The table, a row for each of VanillaCNN's three layers and their sum; and Flax's versions."""
    found, versions = [], {}
    sums = dict.fromkeys((OURS, UNFOLD, FLAX), 0.0)
    for layer in VANILLA:
        print(f"locally connected: {layer}", file=sys.stderr, flush=True)
        with processes(layer, batch, threads, flax_python) as (calls, missing):
            if missing:
                print(f"locally connected: without {FLAX}: {missing}", file=sys.stderr, flush=True)
            else:
                versions = calls[FLAX].ready["versions"]
            seconds = in_turn(calls, rounds)
            ratios = {name: median_ratio(own, seconds[OURS]) for name, own in seconds.items()}
            times = {name: 1e3 * statistics.median(own) for name, own in seconds.items()}
            peaks = {name: process.ready["peak"] for name, process in calls.items()}
        for name in sums:
            sums[name] += times.get(name, float("nan"))
        found.append(_row(str(layer), times, ratios, peaks))
    present = {name: total for name, total in sums.items() if total == total}
    ratios = {name: total / sums[OURS] for name, total in present.items()}
    return [*found, _row("all three", present, ratios, {})], versions


def _row(name: str, times: dict[str, float], ratios: dict[str, float], peaks: dict[str, int]) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": name, "ms": times[OURS]}
    for rival in (UNFOLD, FLAX):
        row |= {f"{rival}, ms": times.get(rival), f"{rival} / ours": ratios.get(rival)}
    both = {rival: peaks.get(rival) for rival in (OURS, UNFOLD)}
    for rival, peak in both.items():
        row[f"peak memory, {rival}"] = None if peak is None else size_text(peak)
    row["peak / ours"] = both[UNFOLD] / both[OURS] if both[UNFOLD] and both[OURS] else None  # type: ignore[operator]
    return row
