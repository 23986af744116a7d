"""What a compiled kernel asks of its GPU, read from the binary itself."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}
REGISTER_LIMIT = {"sm80": 255, "sm90": 255, "sm100": 255, "gfx942": 512}


@dataclass(frozen=True)
class Binary:
    """Tensor instructions of the wanted kind, registers of a thread, spilled bytes, shared memory of a program,
    asynchronous copies into shared memory, operations in fp64, and tiles fetched through a tensor descriptor.
    """

    instructions: int
    registers: int
    spilled_bytes: int
    shared: int
    prefetches: int
    doubles: int
    tiles_fetched: int


NOTHING = Binary(0, 0, 0, 0, 0, 0, 0)


def read(built: Any, arch: str, instruction: str) -> Binary:
    """The binary of ``triton.compile``'s result.

    Args:
        instruction: how the wanted one begins in the assembly; empty if there is none to look for.
    """
    if arch.startswith("gfx"):
        text = built.asm["amdgcn"]
        registers, spilled = (_number(rf"\.{key}:\s*(\d+)", text) for key in ("vgpr_count", "vgpr_spill_count"))
        count = text.count(instruction) if instruction else 0
        doubles = len(re.findall(r"\bv_\w+_f64", text))
        return Binary(count, registers, 4 * spilled, built.metadata.shared, 0, doubles, 0)
    text = built.asm["ptx"]
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    stack, local, registers = (_number(rf"{key}:(\d+)", usage) for key in ("STACK", "LOCAL", "REG"))
    count = text.count(instruction) if instruction else 0
    prefetches = len(re.findall(r"cp\.async\.c[ag]", text))
    doubles = len(re.findall(r"^\s*(?!ld|st|mov)[a-z][\w.]*\.f64\b", text, re.MULTILINE))
    fetched = text.count("cp.async.bulk.tensor")
    return Binary(count, registers, stack + local, built.metadata.shared, prefetches, doubles, fetched)


def _number(expression: str, text: str) -> int:
    found = re.search(expression, text)
    if found is None:
        raise ValueError(f"no {expression!r} in what the compiler says")
    return int(found[1])
