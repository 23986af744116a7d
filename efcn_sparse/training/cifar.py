"""Labeled images through Hugging Face ``datasets``: local parquet, a local image folder, or the Hub."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.training.extras import require
from efcn_sparse.training.images import Images, derived_seed

SPLITS = ("train", "test")
_IMAGE_COLUMNS = ("img", "image")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load_hub_images(
    source: str | None, *, hub_name: str, label: str, image_shape: tuple[int, int, int], classes: int, download: bool
) -> Images:
    """The splits ``train`` and ``test`` of ``source``, normalized.

    Args:
        source: a folder with parquet files (a column ``img`` or ``image`` of encoded images, and ``label``), a folder
            with ``train/<class>/<image>`` and ``test/<class>/<image>``, or a name on the Hub.
        hub_name: where the Hub has these images, for the message.
        label: the column that holds the class; ``label`` is taken where it is missing.
        image_shape: (channels, height, width) that every image must have.
        classes: labels must lie in ``[0, classes)``.
        download: whether a ``source`` that is no folder may be fetched from the Hub.

    Raises:
        ValueError: no source, or one that holds something else.
        ModuleNotFoundError: ``datasets`` or ``pillow`` is missing.
    """
    how = (
        f"pass --data FOLDER with parquet files or with train/<class>/*.png and test/<class>/*.png, "
        f"or fetch it from the Hugging Face Hub with --data {hub_name} --download"
    )
    if source is None:
        raise ValueError(f"data must be given for {hub_name}: {how}")
    folder = Path(source).expanduser()
    if not folder.is_dir() and not download:
        raise ValueError(f"data must be a folder unless --download is given, got {source!r}: {how}")
    if folder.is_dir():
        kind, arguments = _local_arguments(folder, how)
    library = require("datasets", package="Hugging Face datasets", extra="cifar", needed_for="reading CIFAR")
    require("PIL.Image", package="Pillow", extra="cifar", needed_for="decoding images")
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    if not folder.is_dir():
        return _as_images(library, library.load_dataset(source), label, image_shape, classes)
    with tempfile.TemporaryDirectory() as cache:  # datasets would else leave a second copy in the user's cache
        loaded = library.load_dataset(kind, cache_dir=cache, **arguments)
        return _as_images(library, loaded, label, image_shape, classes)


def _local_arguments(folder: Path, how: str) -> tuple[str, dict[str, Any]]:
    """The builder of ``datasets`` for a folder, and what it must be told."""
    files: dict[str, list[str]] = {}
    for split in SPLITS:
        parquet = sorted(folder.rglob("*.parquet"))
        files[split] = [str(path) for path in parquet if split in str(path.relative_to(folder)).lower()]
    if all(files.values()):
        return "parquet", {"data_files": files}
    if any(files.values()):
        missing = next(split for split in SPLITS if not files[split])
        raise ValueError(f"data must hold parquet files for train and test, got none with {missing!r} in its name")
    for split in SPLITS:
        if not any(path.suffix.lower() in _IMAGE_SUFFIXES for path in (folder / split).glob("*/*")):
            raise ValueError(f"data must hold images for train and test, got {folder} without {split}: {how}")
    return "imagefolder", {"data_dir": str(folder)}


def _as_images(library: Any, loaded: Any, label: str, image_shape: tuple[int, int, int], classes: int) -> Images:
    parts: list[Tensor] = []
    for split in SPLITS:
        if split not in loaded:
            raise ValueError(f"data must have the splits train and test, got {', '.join(loaded)}")
        table = loaded[split]
        image_column = _column(table, _IMAGE_COLUMNS)
        label_column = _column(table, (label, "label"))
        decoded = table.cast_column(image_column, library.Image())[image_column]
        pixels = _pixels(decoded, len(table), image_shape)
        labels = _labels(table[label_column], label_column, classes)
        # image folders come sorted by class, and the first so many images stand for all in places
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(derived_seed(split)))
        parts += [pixels[order], labels[order]]
    return Images.normalized(*parts)


def _column(table: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in table.column_names:
            return name
    wanted = " or ".join(dict.fromkeys(repr(name) for name in names))
    raise ValueError(f"data must have a column {wanted}, got {', '.join(table.column_names)}")


def _pixels(decoded: Any, count: int, image_shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = image_shape
    pixels = np.empty((count, height, width, channels), dtype=np.uint8)
    for index, image in enumerate(decoded):
        if image.size != (width, height):
            raise ValueError(f"data must hold {width}x{height} images, got {image.size[0]}x{image.size[1]}")
        pixels[index] = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _labels(column: Any, name: str, classes: int) -> Tensor:
    labels = np.asarray(list(column))
    if labels.dtype.kind not in "iu":
        raise ValueError(f"data must have integers in the column {name!r}, got {labels.dtype}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"data must have labels in [0, {classes}), got {labels.min()} to {labels.max()}")
    return torch.from_numpy(labels.astype(np.int64))
