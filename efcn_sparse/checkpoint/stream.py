"""Numbers between a file and a tensor's own storage, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from io import FileIO

import torch
from torch import Tensor

_PIECE_BYTES = 16 << 20


def write_tensor(file: FileIO, tensor: Tensor) -> None:
    """Write the numbers of ``tensor`` in row-major order; only what lies otherwise in memory is copied, by pieces."""
    most = max(1, _PIECE_BYTES // tensor.element_size())
    numbers: Tensor | None = None  # one for all pieces: freed ones may stay with the process
    for piece in _pieces(tensor, most):
        if piece.device.type == "cpu" and piece.is_contiguous():
            write_bytes(file, _as_bytes(piece.reshape(-1)))
        else:
            if numbers is None:
                numbers = torch.empty(min(most, tensor.numel()), dtype=tensor.dtype, device="cpu")
            numbers[: piece.numel()].view(piece.shape).copy_(piece)
            write_bytes(file, _as_bytes(numbers[: piece.numel()]))


def write_bytes(file: FileIO, view: memoryview) -> None:
    """Write all of ``view``, of which an unbuffered file may take less at a time."""
    while view:
        view = view[file.write(view) :]


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
