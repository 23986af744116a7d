"""Results as JSON, and as the Markdown that people read: a title, the machine, and tables of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efcn_sparse.measure import machine

Rows = Sequence[Mapping[str, Any]]


def results(title: str, threads: int, tables: Mapping[str, Rows]) -> dict[str, Any]:
    """Everything, ready for JSON; ``tables`` by heading, every row with the keys of the first."""
    return {"schema": 2, "title": title, "machine": machine.describe(threads), "tables": dict(tables)}


def markdown(found: Mapping[str, Any]) -> str:
    """The page.

    Example:
        >>> print(markdown(results("Sums", 1, {"Times": [{"call": "sum", "ms": 0.12345}]})).split("## ")[1], end="")
        Times
        <BLANKLINE>
        | call | ms |
        | --- | --- |
        | sum | 0.123 |
    """
    here = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    parts = [
        f"# {found['title']}",
        f"{here['cpu']}, {here['capability']}, torch on {here['threads']} thread(s) of {here['cores']} cores, "
        f"{here['system']}, {here['date'][:10]}; {versions}; {here['extension']}; "
        f"commit {here['commit'] or 'unknown'}; load average {here['load_average']}.",
        *(f"## {heading}\n\n{_table(rows)}" for heading, rows in found["tables"].items() if rows),
    ]
    return "\n\n".join(parts) + "\n"


def write(found: Mapping[str, Any], directory: Path, name: str = "") -> tuple[Path, Path]:
    """``<machine>-<date>[-name].json`` and ``.md`` in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = "-".join(filter(None, [machine.slug(found["machine"]), name]))
    paths = directory / f"{stem}.json", directory / f"{stem}.md"
    paths[0].write_text(json.dumps(found, indent=1) + "\n")
    paths[1].write_text(markdown(found))
    return paths


def _table(rows: Rows) -> str:
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[head]) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
