"""Images in IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.training.data.images import Images

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
_PARTS = {"train": "train", "test": "t10k"}
_MOST_DIMENSIONS = 8


def load_idx_images(
    folder: str | Path | None, *, image_shape: tuple[int, int, int], classes: int, download: bool = False
) -> Images:
    """The four IDX files of a folder, named as MNIST names them, normalized.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, and the same with ``t10k``; each
            gzipped or not, with or without ``.gz`` in its name. None: where Debian puts Fashion-MNIST.
        image_shape: (1, height, width) that every image must have.
        classes: labels must lie in ``[0, classes)``.
        download: without effect; nothing is fetched.

    Raises:
        ValueError: a file is missing, damaged, of another shape, or its labels are not those of its images; the
            message names the file.
    """
    folder = Path(FASHION_MNIST if folder is None else folder).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"data must be a folder with the IDX files of Fashion-MNIST, got {str(folder)!r}: pass --data FOLDER, or, "
            "on Debian and Ubuntu, apt install dataset-fashion-mnist"
        )
    parts: list[Tensor] = []
    for split, prefix in _PARTS.items():
        images, labels = (find_idx(folder, f"{prefix}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        x, y = read_idx(images), read_idx(labels)
        if x.dim() != 3 or (1, *x.shape[1:]) != image_shape or not len(x):
            expected = f"[N, {image_shape[1]}, {image_shape[2]}]"
            raise ValueError(f"{images} must hold {split} images {expected}, got {list(x.shape)}")
        if y.dim() != 1 or len(y) != len(x):
            raise ValueError(f"{labels} must hold a label for each of {len(x)} images, [{len(x)}], got {list(y.shape)}")
        if int(y.max()) >= classes:
            raise ValueError(f"{labels} must hold labels in [0, {classes}), got {int(y.max())}")
        parts += [x.unsqueeze(1), y]
    if len(parts[0]) == len(parts[2]) and torch.equal(parts[0], parts[2]):
        raise ValueError(f"{folder} must hold other images for testing than for training, got the same twice")
    return Images.normalized(*parts)


def read_idx(path: str | Path) -> Tensor:
    """One IDX file of unsigned bytes as a uint8 tensor; gzipped files are known by their content, not by their name.

    The format: two zero bytes, a type (8: unsigned bytes), the number of dimensions, each size as a big-endian 32-bit
    number, then the numbers, the last dimension fastest. Source: http://yann.lecun.com/exdb/mnist.

    Raises:
        ValueError: the file is no IDX file of unsigned bytes, is cut off, or goes on after its end.
    """
    path = Path(path)
    with path.open("rb") as plain:
        gzipped = plain.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if gzipped else path.open("rb") as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08" or not 1 <= start[3] <= _MOST_DIMENSIONS:
                raise ValueError(f"{path} must be an IDX file of unsigned bytes, got the first bytes {start.hex(' ')}")
            sizes = np.frombuffer(_exactly(file, 4 * start[3], path), ">u4").tolist()
            numbers = _exactly(file, math.prod(sizes), path)
            if file.read(1):
                raise ValueError(f"{path} must end after {sizes} bytes, as its header says, got more")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} must be a whole gzip file, got: {error}") from None
    return torch.from_numpy(np.frombuffer(numbers, np.uint8).reshape(sizes).copy())


def _exactly(file: IO[bytes] | gzip.GzipFile, count: int, path: Path) -> bytes:
    """So many bytes, read in pieces: a header with absurd sizes must not ask for their memory."""
    pieces, missing = [], count
    while missing:
        piece = file.read(min(missing, 1 << 20))
        if not piece:
            raise ValueError(f"{path} must hold {count:,} more bytes, as its header says, got {count - missing:,}")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def find_idx(folder: Path, name: str) -> Path:
    """The file ``name`` of a folder, gzipped or not, in one of the spellings that are in use."""
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise ValueError(f"{folder} must hold {name} or {name}.gz, as MNIST and Fashion-MNIST come, got neither")
