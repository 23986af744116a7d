"""Which tile is taken, and why: a measured row that is near, else the rule of the architecture.

``measured.json`` holds rows that come with the package, a file named by ``EFCN_TUNING`` those of the user, which come
first. ``efcn-sparse tune`` writes them; nothing is ever timed here.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from efcn_sparse.ops.backends.triton.tiles import Case, Config, by_rule

OVERRIDE = "EFCN_TUNING"
TABLE = Path(__file__).with_name("measured.json")
_NEAR = 2.0  # octaves: rows that are further away say nothing


class Choice(NamedTuple):
    """A configuration, and why it is taken."""

    config: Config
    why: str


@dataclass(frozen=True)
class Row:
    """A measured configuration; ``source`` says where and how fast."""

    case: Case
    config: Config
    source: str


_FORCED: list[Config] = []


@contextmanager
def only(config: Config) -> Iterator[None]:
    """Inside, this is every case's configuration: for those who compare configurations, not for several threads."""
    _FORCED.append(config)
    try:
        yield
    finally:
        _FORCED.pop()


def choose(case: Case, processors: int) -> Choice:
    """The configuration for a case on a device with that many multiprocessors.

    Raises:
        ValueError: the user's file is no tuning table.
    """
    return Choice(_FORCED[-1], "set by tuning.only") if _FORCED else _choose(case, processors)


@functools.lru_cache(maxsize=4096)
def _choose(case: Case, processors: int) -> Choice:
    near = min(rows(), key=lambda row: distance(case, row.case), default=None)
    if near is not None and distance(case, near.case) <= _NEAR:
        return Choice(near.config, near.source)
    return Choice(*by_rule(case, processors))


def distance(one: Case, other: Case) -> float:
    """How far two cases are apart, in octaves of block sides, batch, size and density; infinite for other kernels."""
    if (one.operation, one.arch, one.bits) != (other.operation, other.arch, other.bits):
        return math.inf
    sides = _octaves(one.height, other.height) + _octaves(one.width, other.width)
    amount = _octaves(one.batch, other.batch) + _octaves(one.results, other.results)
    return sides + 0.5 * amount + 0.25 * _octaves(one.density, other.density)


def _octaves(one: float, other: float) -> float:
    return abs(math.log2(max(one, 1e-9) / max(other, 1e-9)))


def rows() -> tuple[Row, ...]:
    """What was measured, the user's rows first: of two that are equally near the first is taken."""
    return _rows(os.environ.get(OVERRIDE, ""))


@functools.lru_cache(maxsize=8)
def _rows(override: str) -> tuple[Row, ...]:
    return (read(Path(override)) if override else ()) + read(TABLE)


def forget() -> None:
    """Read the files again at the next call."""
    _rows.cache_clear()
    _choose.cache_clear()


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a file.

    Raises:
        ValueError: the file is no table, or a row of it is wrong; the message names file and row.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a tuning table with a list of rows: {error}") from error
    found = []
    for number, row in enumerate(listed):
        try:
            found.append(Row(_made(Case, row["case"]), _made(Config, row["config"]), str(row.get("source", ""))))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return tuple(found)


def _made(kind: type[Any], given: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{kind.__name__} has no {unknown}, only {sorted(known)}")
    return kind(**given)
