"""Tile sizes as data: ``tuning.json``, the nearest row of it, and a user's own file before it.

Nothing is ever timed here: rows are chosen ahead, by the work model (``benchmarks/gpu/search.py``) or by measuring
(``efcn-sparse tune``).
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

OVERRIDE = "EFCN_TUNING"  # a file whose rows come before those of tuning.json
OPERATIONS = ("spmm", "spmm_t", "sddmm")
TABLE = Path(__file__).with_name("tuning.json")
_WIDTHS = {torch.float64: 64, torch.float32: 32, torch.bfloat16: 16, torch.float16: 16}


@dataclass(frozen=True)
class Config:
    """How one kernel is cut and launched.

    Attributes:
        block_m, block_n, block_k: the tile of the product, powers of two from 16 up. For ``spmm`` M is the batch, N the
            outputs and K the inputs; for ``sddmm`` M is the columns of the blocks, N their rows and K the batch.
        members: block rows of a super-row; 0: as many as the work model finds best for the pattern.
        swizzle: block rows that are computed together for one tile of the batch.
        pieces: ``spmm``: the most entries of a task, 0: by the size of the device; ``sddmm``: the stretches of the
            batch, 0: by the size of the device.
        warps, stages: of Triton.
        descriptors: ``spmm``: x is fetched by the copy engine (Hopper and later) through a tensor descriptor, where its
            layout suits. No row of the table asks for it: whether it pays was not measured.
    """

    block_m: int
    block_n: int
    block_k: int
    members: int = 0
    swizzle: int = 8
    pieces: int = 0
    warps: int = 4
    stages: int = 3
    descriptors: bool = False

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            side = getattr(self, name)
            if not isinstance(side, int) or side < 16 or side & (side - 1):
                raise ValueError(f"{name} must be a power of two of at least 16, got {side!r}")
        for name, least in (("members", 0), ("swizzle", 1), ("pieces", 0), ("warps", 1), ("stages", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {getattr(self, name)!r}")
        if not isinstance(self.descriptors, bool):
            raise ValueError(f"descriptors must be true or false, got {self.descriptors!r}")


@dataclass(frozen=True)
class Case:
    """What a configuration is wanted for; a row of the table says the same of what it was chosen for.

    Attributes:
        operation: ``"spmm"``, ``"spmm_t"`` or ``"sddmm"``.
        arch: ``"sm80"``, ``"sm90"``, ``"sm100"``, ``"gfx942"`` or the like, or ``"interpreter"``.
        bits: of an operand: 16, 32 or 64.
        height, width: of a block, along the outputs of the operation and along its inputs.
        batch, density: rows of x, and stored blocks over all blocks.
        results: how many numbers the result has: outputs of one row of the batch, or for ``sddmm`` stored entries. Over
            the tile's that is how many programs there are to fill the device. 0 in a row: it is for every size.
    """

    operation: str
    arch: str
    bits: int
    height: int
    width: int
    batch: int
    density: float
    results: int = 0

    def distance(self, other: Case) -> float:
        """How far ``other`` is, in octaves: kind and operand first, the GPU, then block, batch, size and density."""
        if self.operation != other.operation or self.bits != other.bits:
            return math.inf
        if (self.arch == "interpreter") != (other.arch == "interpreter"):
            return math.inf
        far = 0.0 if self.arch == other.arch else 100.0 if family(self.arch) == family(other.arch) else 200.0
        sides = _octaves(self.height, other.height) + _octaves(self.width, other.width)
        size = _octaves(self.results, other.results) if self.results and other.results else 0.0
        amount = _octaves(self.batch, other.batch) + size
        return far + sides + 0.5 * amount + 0.25 * _octaves(self.density, other.density)


def family(arch: str) -> str:
    """The GPU of the table that multiplies with the same instructions: GeForce's newest has those of ``"sm80"``."""
    if arch.startswith("gfx"):
        return "gfx942"
    generation = arch.removeprefix("sm")[:-1]
    return {"8": "sm80", "9": "sm90", "10": "sm100", "11": "sm100", "12": "sm80"}.get(generation, arch)


def _octaves(one: float, other: float) -> float:
    return abs(math.log2(max(one, 1e-9) / max(other, 1e-9)))


@dataclass(frozen=True)
class Row:
    """One row of the table; ``source`` says where its numbers come from."""

    case: Case
    config: Config
    source: str


def bits_of(dtype: torch.dtype) -> int:
    """16, 32 or 64: rows of the table hold for every dtype of that size."""
    return _WIDTHS[dtype]


_FORCED: list[Config] = []


@contextmanager
def only(config: Config) -> Iterator[None]:
    """Inside, this is every case's configuration: for those who compare configurations, not for several threads."""
    _FORCED.append(config)
    try:
        yield
    finally:
        _FORCED.pop()


def forced() -> Config | None:
    """The configuration of :func:`only`, None outside."""
    return _FORCED[-1] if _FORCED else None


@functools.lru_cache(maxsize=4096)
def config_for(case: Case) -> Config:
    """The nearest row's configuration, its N tile no wider than a super-row's outputs.

    Raises:
        LookupError: no row of the table is for this operation and operand size.
    """
    found = min(rows(), key=lambda row: case.distance(row.case), default=None)
    if found is None or math.isinf(case.distance(found.case)):
        raise LookupError(f"the tuning table has no row for {case}")
    return found.config


def rows() -> tuple[Row, ...]:
    """The table, a user's rows first: of two that are equally near the first is taken."""
    return _rows(os.environ.get(OVERRIDE, ""))


@functools.lru_cache(maxsize=8)
def _rows(override: str) -> tuple[Row, ...]:
    own = read(Path(override)) if override else ()
    return own + read(TABLE)


def forget() -> None:
    """Read the files again at the next call."""
    _rows.cache_clear()
    config_for.cache_clear()


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a file.

    Raises:
        ValueError: the file is no table, or a row of it is wrong; the message names file and row.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        listed = table["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a tuning table with a list of rows: {error}") from error
    found = []
    for number, row in enumerate(listed):
        try:
            found.append(Row(_made(Case, row["case"]), _made(Config, row["config"]), str(row.get("source", ""))))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return tuple(found)


def write(path: Path, table: tuple[Row, ...]) -> None:
    """A file that :func:`read` reads, put in the place of the old one at once."""
    lines = [json.dumps(told(row)) for row in table]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", encoding="utf-8") as file:
        file.write('{"rows": [\n  ' + ",\n  ".join(lines) + "\n]}\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def told(row: Row) -> dict[str, Any]:
    """A row as it stands in a file."""
    return {"case": _fields(row.case), "config": _fields(row.config), "source": row.source}


def _fields(made: Any) -> dict[str, Any]:
    """Its fields, but for those that are as usual."""
    return {f.name: v for f, v in zip(fields(made), asdict(made).values(), strict=True) if v != f.default}


def _made(kind: type[Any], given: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{kind.__name__} has no {unknown}, only {sorted(known)}")
    return kind(**given)


def power_of_two(number: int) -> int:
    """The least power of two of at least ``number``, and at least 16: a side of a tile."""
    return max(16, 1 << (number - 1).bit_length())


def trimmed(config: Config, height: int, members: int) -> Config:
    """The configuration for that many members: no N tile wider than their outputs."""
    return replace(config, members=members, block_n=min(config.block_n, power_of_two(height * members)))
