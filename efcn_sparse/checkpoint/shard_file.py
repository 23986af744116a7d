"""The safetensors file: eight bytes with the header's length, a JSON header, then the numbers of all tensors.

Written and read here and not by the library of that name, whose writer copies each tensor and whose reader maps whole
files: the numbers go between the file and the storage where they live.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from efcn_sparse.checkpoint.joined import Stored, parts_of
from efcn_sparse.checkpoint.stream import write_bytes, write_tensor

NAME_OF_DTYPE = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPE_OF_NAME = {name: dtype for dtype, name in NAME_OF_DTYPE.items()}
_LONGEST_HEADER = 100_000_000  # as in the format's own reader
_ALIGNMENT = 8


class Entry(NamedTuple):
    """A tensor in a file: its numbers are ``nbytes`` bytes from ``start``, counted from the start of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write the file that holds ``tensors`` one after another, from the storage they have."""
    with path.open("wb", buffering=0) as file:
        write_bytes(file, memoryview(_header(tensors)))
        for tensor in tensors.values():
            for part in parts_of(tensor):
                write_tensor(file, part)


def _header(tensors: Mapping[str, Stored]) -> bytes:
    """The beginning of the file that holds ``tensors`` one after another."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.nbytes
        dtype = NAME_OF_DTYPE[tensor.dtype]
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_header(path: Path) -> dict[str, Entry]:
    """What the file holds, by name.

    Raises:
        ValueError: it is no whole safetensors file, or holds a dtype that torch lacks.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} must be a whole safetensors file, got {size} bytes that end in its header")
        text = file.read(length)
    try:
        told = json.loads(text)
        told.pop("__metadata__", None)
        entries = {name: _entry(path, 8 + length, facts) for name, facts in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be a safetensors file, got a header that cannot be read: {error!r}") from error
    needed = max((entry.start + entry.nbytes for entry in entries.values()), default=8 + length)
    if needed != size:
        raise ValueError(f"{path} must be a whole safetensors file of {needed} bytes, got {size}")
    return entries


def _entry(path: Path, start: int, facts: Mapping[str, Any]) -> Entry:
    first, last = map(int, facts["data_offsets"])
    shape = tuple(map(int, facts["shape"]))
    entry = Entry(path, _DTYPE_OF_NAME[facts["dtype"]], shape, start + first)
    if first < 0 or min(shape, default=0) < 0 or last - first != entry.nbytes:
        raise ValueError(f"{entry.nbytes} bytes of {list(shape)} at [{first}, {last})")
    return entry
