"""The records of a run as JSON, rewritten after each of them, and the page that is made of them. No torch here."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import summary
from benchmarks.gpu.page import markdown
from benchmarks.gpu.protocol import Record
from benchmarks.gpu.supervise import write_atomically


class Results:
    """Records as they come; every one of them is on the disk before the next case begins.

    Args:
        directory: where ``<device>-<date>.json`` and ``.md`` are written; until the device is known, to ``gpu-run``.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._began = directory, time.monotonic()
        self.records: list[Record] = []
        self._slug = "gpu-run"

    def add(self, record: Record) -> None:
        """Keep a record, on the disk too, and print a line of it."""
        self.records.append(record)
        if record["name"] == "environment" and "result" in record:
            self._name(record["result"])
        write_atomically(self._path("json"), self.json())
        print(f"{time.monotonic() - self._began:6.1f} s  {record['name']}: {_outcome(record)}", flush=True)

    def finish(self) -> tuple[Path, ...]:
        """Write the page, and a tuning file if there are rows for one; the names of all files."""
        write_atomically(self._path("md"), self.page())
        paths = [self._path("json"), self._path("md")]
        if rows := tuning_rows(self.records):
            paths.append(self._directory / f"{self._slug}-tuning.json")
            write_atomically(paths[-1], json.dumps({"rows": rows}, indent=1) + "\n")
        return tuple(paths)

    def json(self) -> str:
        """All records."""
        return json.dumps({"schema": 1, "records": self.records}, indent=1) + "\n"

    def page(self) -> str:
        """Markdown."""
        return markdown(self.records)

    def summary(self) -> str:
        """What is printed at the end."""
        return summary.text(self.records)

    @property
    def failures(self) -> list[str]:
        """Names of the cases that failed."""
        return [record["name"] for record in self.records if "failed" in record]

    def _name(self, environment: dict[str, Any]) -> None:
        before = self._path("json")
        words = f"{environment['device']} {environment['date'][:10]}"
        self._slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        before.unlink(missing_ok=True)

    def _path(self, ending: str) -> Path:
        return self._directory / f"{self._slug}.{ending}"


def tuning_rows(records: list[Record]) -> list[dict[str, Any]]:
    """Rows of a tuning file that were found: for each case the first, which is that of the more important pattern."""
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        for one in record.get("result", {}).get("operations", []):
            if "row" in one:
                rows.setdefault(json.dumps(one["row"]["case"]), one["row"])
    return list(rows.values())


def _outcome(record: Record) -> str:
    if "failed" in record:
        return f"FAILED, {record['failed'][:200]}"
    return record.get("not_run") or f"{record.get('seconds', 0.0):.1f} s"
