"""Workers are started until every case has a record: one that dies or hangs costs its own case only. No torch here."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.protocol import NO_TIME, Record, heard

_STARTING = 120.0  # seconds that a worker may take until its first case


def supervise(
    command: Sequence[str], cases: Mapping[str, str], deadline: float, add: Callable[[Record], None], *,
    longest: float = 200.0, grace: float = 20.0, **process: Any,
) -> None:  # fmt: skip
    """Run ``command`` over the cases; ``add`` gets one record for each of them, as it comes.

    Args:
        command: a worker, which reads ``{"names": [...], "seconds": s}`` from its standard input.
        cases: name → group, in order.
        deadline: of ``time.monotonic()``; a case that runs ``grace`` seconds past it is stopped.
        longest: seconds after which a case counts as hung.
        process: for :class:`subprocess.Popen`.
    """
    open_cases = dict(cases)
    while open_cases:
        if time.monotonic() >= deadline:
            for name, group in open_cases.items():
                add({"name": name, "group": group, "not_run": NO_TIME})
            return
        with tempfile.TemporaryFile("w+") as errors, _Worker(command, errors, process) as worker:
            worker.begin(list(open_cases), deadline - time.monotonic())
            current, why = None, None
            while True:
                until = min(worker.heard_at + (_STARTING if current is None else longest), deadline + grace)
                message = worker.next(until)
                if message is None:
                    break
                if "begin" in message:
                    current = message["begin"]
                elif message["record"]["name"] in open_cases:
                    current = None
                    del open_cases[message["record"]["name"]]
                    add(message["record"])
            if worker.process.poll() is None and not worker.ended:
                why = f"stopped after {time.monotonic() - worker.heard_at:.0f} seconds without an answer"
            status = worker.stop()
            if status == 0 and not open_cases:
                return
            if current is None and status == 3:
                continue  # the record of the failure came before
            errors.seek(0)
            why = why or f"the process ended with status {status}: {errors.read()[-1500:].strip()}"
            if current is None:  # it dies before it begins a case: so will the next
                for name, group in open_cases.items():
                    add({"name": name, "group": group, "failed": why})
                return
            add({"name": current, "group": open_cases.pop(current), "failed": why})


class _Worker:
    """A process and the messages that it prints."""

    def __init__(self, command: Sequence[str], errors: Any, process: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, **process
        )
        self.heard_at, self.ended = time.monotonic(), False
        self._messages: queue.Queue[Record | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # a line cut off by the process's death
                message = heard(line)
                if message is not None:
                    self._messages.put(message)
        self._messages.put(None)

    def begin(self, names: list[str], seconds: float) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"names": names, "seconds": seconds}))
            self.process.stdin.close()

    def next(self, until: float) -> Record | None:
        """The next message; None if the process has ended, or says nothing until then."""
        try:
            message = self._messages.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        self.heard_at, self.ended = time.monotonic(), message is None
        return message

    def stop(self) -> int:
        if self.process.poll() is None and not self.ended:
            self.process.kill()
        status = self.process.wait()
        self._reader.join(timeout=5)
        return status


def write_atomically(path: Path, text: str) -> None:
    """The file has its old text or the new one, whatever happens meanwhile."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
