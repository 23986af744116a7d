"""How a worker tells its supervisor what it does: a line of JSON for each beginning and record. No torch here."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

MARK = "@@efcn "  # what lines of the protocol start with; others are a library's chatter
RESTART = 3  # the exit status of a worker whose device can no longer be used
NO_TIME = "not run: time"

Record = dict[str, Any]
Job = tuple[str, str, float, Callable[[], Record]]  # name, group, seconds that it may take, what measures it


def say(message: Record) -> None:
    """One message to the supervisor."""
    print(MARK + json.dumps(message), flush=True)


def heard(line: str) -> Record | None:
    """The message of a line, None if it is none."""
    return json.loads(line[len(MARK) :]) if line.startswith(MARK) else None


def run_jobs(
    jobs: Iterable[Job], left: Callable[[], float], is_broken: Callable[[], bool], tell: Callable[[Record], None] = say
) -> int:
    """Run the jobs in turn; a failure is recorded and the next one follows.

    Args:
        jobs: name, group, seconds and function of each; one that may take longer than ``left()`` seconds is not begun.
        is_broken: asked after a failure: whether the device is lost to this process.
        tell: gets ``{"begin": name}`` and ``{"record": ...}``.

    Returns:
        The exit status of the worker: 0, or ``RESTART``.
    """
    for name, group, seconds, measure in jobs:
        record: Record = {"name": name, "group": group}
        if left() < seconds:
            tell({"record": record | {"not_run": NO_TIME}})
            continue
        tell({"begin": name})
        began = time.monotonic()
        try:
            record["result"] = measure()
        except Exception as error:
            record["failed"] = f"{type(error).__name__}: {error}"[:1000]
            record["where"] = traceback.format_exc(limit=-3)[-1500:]
        tell({"record": record | {"seconds": round(time.monotonic() - began, 2)}})
        if "failed" in record and is_broken():
            return RESTART
    return 0
