"""All measurements in one process, gathered into one table of results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from efcn_sparse.measure import machine as machines
from efcn_sparse.measure import memory, ops, roofline, vanilla
from efcn_sparse.measure.shapes import Shapes

SCHEMA = 1
SUITES = ("ops", "vanilla")


class Session:
    """One run: the machine and its roofline, measured first, and the records that are added one by one.

    Args:
        shapes: what is measured.
        threads: how many threads torch uses; the caller sets them (:func:`threads_set_to`).
    """

    def __init__(self, shapes: Shapes, threads: int) -> None:
        self.shapes = shapes
        self.machine = machines.describe(threads)
        self._start = machines.CpuClock.now()
        self.roofline = roofline.measure(shapes.roofline)
        self.ops: list[dict[str, Any]] = []
        self.vanilla: dict[str, Any] | None = None

    def add_ops(self, prepared: ops.OpsContest) -> dict[str, Any]:
        """Add the record of an operation's contest that was run."""
        self.ops.append(prepared.record(self.roofline, self.machine.has_amx))
        return self.ops[-1]

    def add_vanilla(self, prepared: vanilla.VanillaContest) -> dict[str, Any]:
        """Add the record of VanillaCNN's contest that was run, and measure the peak memory of each variant."""
        peak = memory.peak_memory(self.shapes.vanilla, self.machine.threads)
        self.vanilla = prepared.record(self.roofline, peak)
        return self.vanilla

    def results(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        now = machines.CpuClock.now()
        return {
            "schema": SCHEMA,
            "shapes": self.shapes.name,
            "machine": asdict(self.machine),
            "others_share": None if now is None or self._start is None else now.others_since(self._start),
            "roofline": asdict(self.roofline),
            "ops": self.ops,
            "vanilla": self.vanilla,
        }


def run(shapes: Shapes, threads: int, suites: Iterable[str], say: Callable[[str], None]) -> Session:
    """Run ``suites`` (of :data:`SUITES`); ``say`` gets a line before each part."""
    with threads_set_to(threads):
        say("roofline: dense product and memory")
        session = Session(shapes, threads)
        if "ops" in suites:
            for case in shapes.ops.cases():
                say(f"ops: {case}")
                prepared = ops.prepare(case)
                prepared.contest.run(case.rounds)
                session.add_ops(prepared)
        if "vanilla" in suites:
            say("vanilla: training steps, then the peak memory of each")
            step = vanilla.prepare(shapes.vanilla)
            step.contest.run(shapes.vanilla.rounds)
            session.add_vanilla(step)
        return session


@contextlib.contextmanager
def threads_set_to(threads: int) -> Iterator[None]:
    """Torch on ``threads`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
