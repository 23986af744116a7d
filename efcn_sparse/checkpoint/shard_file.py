"""The safetensors file: eight bytes with the header's length, a JSON header, then the numbers of all tensors.

Written and read here and not by the library of that name, whose writer copies each tensor and whose reader maps whole
files: the numbers go between the file and the storage where they live, a bounded piece at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efcn_sparse.checkpoint.atomic import parse_json, write_all

NAME_OF_DTYPE = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPE_OF_NAME = {name: dtype for dtype, name in NAME_OF_DTYPE.items()}
_LONGEST_HEADER = 100_000_000  # as in the format's own reader
_ALIGNMENT = 8
_MOST_TOLD = 100  # characters of what was found, in messages
_PIECE_BYTES = 16 << 20


class Entry(NamedTuple):
    """A tensor in a file: its numbers are ``nbytes`` bytes from ``start``, counted from the start of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(file: FileIO, tensors: Mapping[str, Tensor]) -> None:
    """Write the file that holds ``tensors`` one after another, from the storage they have."""
    write_all(file, memoryview(_header(tensors)))
    for tensor in tensors.values():
        write_tensor(file, tensor)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
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
    told = parse_json(text, f"the header of {path}")
    told.pop("__metadata__", None)
    entries = {name: _entry(path, 8 + length, name, facts) for name, facts in told.items()}
    needed = max((entry.start + entry.nbytes for entry in entries.values()), default=8 + length)
    if needed != size:
        raise ValueError(f"{path} must be a whole safetensors file of {needed} bytes, got {size}")
    return entries


def _entry(path: Path, start: int, name: str, facts: Any) -> Entry:
    def check(right: bool, expected: str, got: object) -> None:
        if not right:
            raise ValueError(f"the header of {path} must have {expected} for {name!r}, got {str(got)[:_MOST_TOLD]}")

    check(isinstance(facts, dict), "an object", facts)
    shape, offsets, dtype = (facts.get(key) for key in ("shape", "data_offsets", "dtype"))
    check(isinstance(dtype, str) and dtype in _DTYPE_OF_NAME, "a dtype that torch knows", dtype)
    check(_are_counts(shape), "a shape of integers of at least 0", shape)
    check(math.prod(max(side, 1) for side in shape) < 2**63, "a shape that can be", shape)
    check(_are_counts(offsets) and len(offsets) == 2, "two data_offsets of at least 0", offsets)
    first, last = offsets
    entry = Entry(path, _DTYPE_OF_NAME[dtype], tuple(shape), start + first)
    check(last - first == entry.nbytes, f"data_offsets {entry.nbytes} bytes apart, as its shape asks", offsets)
    return entry


def _are_counts(told: object) -> bool:
    return isinstance(told, list) and all(type(number) is int and number >= 0 for number in told)


# -- numbers, piece by piece ----------------------------------------------------------------------------------


def write_tensor(file: FileIO, tensor: Tensor) -> None:
    """Write the numbers of ``tensor`` in row-major order; only what lies otherwise in memory is copied, by pieces."""
    most = max(1, _PIECE_BYTES // tensor.element_size())
    numbers: Tensor | None = None  # one for all pieces: freed ones may stay with the process
    for piece in _pieces(tensor, most):
        if piece.device.type == "cpu" and piece.is_contiguous():
            write_all(file, _as_bytes(piece.reshape(-1)))
        else:
            if numbers is None:
                numbers = torch.empty(min(most, tensor.numel()), dtype=tensor.dtype, device="cpu")
            numbers[: piece.numel()].view(piece.shape).copy_(piece)
            write_all(file, _as_bytes(numbers[: piece.numel()]))


def read_tensor(file: FileIO, dtype: torch.dtype, tensor: Tensor) -> None:
    """Overwrite ``tensor`` in place with the next numbers of ``file``, which are of ``dtype``.

    Raises:
        EOFError: the file ends before.
    """
    most = max(1, _PIECE_BYTES // dtype.itemsize)
    numbers: Tensor | None = None
    for piece in _pieces(tensor, most):
        if piece.dtype == dtype and piece.device.type == "cpu" and piece.is_contiguous():
            _fill(file, piece.reshape(-1))
        else:
            if numbers is None:
                numbers = torch.empty(min(most, tensor.numel()), dtype=dtype, device="cpu")
            _fill(file, numbers[: piece.numel()])
            piece.copy_(numbers[: piece.numel()].view(piece.shape))


def _fill(file: FileIO, flat: Tensor) -> None:
    view = _as_bytes(flat)
    while view:
        got = file.readinto(view)
        if not got:
            raise EOFError(f"the file must hold {len(view)} more bytes, got its end")
        view = view[got:]


def _as_bytes(flat: Tensor) -> memoryview:
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers


def _pieces(tensor: Tensor, most: int) -> Iterator[Tensor]:
    """Views of at most ``most`` numbers that, one after another, are the tensor's numbers in row-major order."""
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(most)
        return
    row = tensor.numel() // tensor.shape[0]
    if row <= most:
        yield from tensor.split(most // row)
    else:
        for part in tensor.unbind(0):
            yield from _pieces(part, most)
