"""Labeled images: a local image folder, or through Hugging Face ``datasets`` local parquet files or the Hub."""

from __future__ import annotations

import glob
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.importing import require
from efcn_sparse.training.data.images import Images, derived_seed

SPLITS = ("train", "test")
_IMAGE_COLUMNS = ("img", "image")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # Pillow's modes; others are clipped


def load_hub_images(
    source: str | None, *, hub_name: str, label: str, image_shape: tuple[int, int, int], classes: int, download: bool
) -> Images:
    """The splits ``train`` and ``test`` of ``source``, normalized.

    Args:
        source: a folder with parquet files (a column ``img`` or ``image`` of encoded images, and ``label``) in whose
            names, or in those of their folders, ``train`` or ``test`` is a word; a folder with
            ``train/<class>/<image>`` and ``test/<class>/<image>``, classes numbered by name; or a name on the Hub.
        hub_name: where the Hub has these images, for the message.
        label: the column that holds the class; ``label`` is taken where it is missing.
        image_shape: (channels, height, width) that every image must have.
        classes: labels must lie in ``[0, classes)``.
        download: whether a ``source`` that is no folder may be fetched from the Hub.

    Raises:
        ValueError: no source, or one that holds something else: images of more than 8 bits a channel, too, since
            reducing them would clip their values.
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
    parquet = _parquet_files(folder) if folder.is_dir() else {}
    files = _image_files(folder, how) if folder.is_dir() and not parquet else {}
    pillow = require("PIL.Image", package="Pillow", extra="cifar", needed_for="decoding images")
    if files:
        names = sorted({path.parent.name for paths in files.values() for path in paths})
        return _normalized({
            split: (
                _pixels(map(pillow.open, paths), [str(path) for path in paths], image_shape),
                _labels([names.index(path.parent.name) for path in paths], "train/<class>", classes),
            )
            for split, paths in files.items()
        })  # fmt: skip
    library = require("datasets", package="Hugging Face datasets", extra="cifar", needed_for="reading CIFAR")
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    if not parquet:
        return _from_tables(library, library.load_dataset(source), label, image_shape, classes)
    with tempfile.TemporaryDirectory() as cache:  # datasets would else leave a second copy in the user's cache
        named = {split: [glob.escape(str(path)) for path in paths] for split, paths in parquet.items()}
        loaded = library.load_dataset("parquet", cache_dir=cache, data_files=named)
        return _from_tables(library, loaded, label, image_shape, classes)


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, in whose path below ``folder`` its name is a word; empty if there are none."""
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in sorted(folder.rglob("*.parquet")):
        words = re.findall("[a-z]+", str(path.relative_to(folder)).lower())
        fitting = [split for split in SPLITS if split in words]
        if len(fitting) > 1:
            raise ValueError(f"data must hold parquet files of one split each, got {path}, named both train and test")
        for split in fitting:
            files[split].append(path)
    for split, other in (SPLITS, SPLITS[::-1]):
        if files[other] and not files[split]:
            raise ValueError(f"data must hold parquet files for train and test, got none with {split!r} in its name")
    return files if any(files.values()) else {}


def _image_files(folder: Path, how: str) -> dict[str, list[Path]]:
    """The images of each split, sorted: those in the class folders of its folder, whatever these are called."""
    files = {}
    for split in SPLITS:
        found = (path for path in (folder / split).rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
        files[split] = sorted(found, key=str)
        if not files[split]:
            raise ValueError(f"data must hold images for train and test, got {folder} without {split}: {how}")
        for path in files[split]:
            if path.parent.parent != folder / split:
                raise ValueError(f"data must hold images as {split}/<class>/<image>, got {path}")
    return files


def _from_tables(library: Any, loaded: Any, label: str, image_shape: tuple[int, int, int], classes: int) -> Images:
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for split in SPLITS:
        if split not in loaded:
            raise ValueError(f"data must have the splits train and test, got {', '.join(loaded)}")
        table = loaded[split]
        image_column = _column(table, _IMAGE_COLUMNS)
        label_column = _column(table, (label, "label"))
        decoded = table.cast_column(image_column, library.Image())[image_column]
        names = [f"image {index} of {split}" for index in range(len(table))]
        pixels = _pixels(decoded, names, image_shape)
        parts[split] = pixels, _labels(table[label_column], f"the column {label_column!r}", classes)
    return _normalized(parts)


def _normalized(parts: dict[str, tuple[Tensor, Tensor]]) -> Images:
    shuffled: list[Tensor] = []
    for split, (pixels, labels) in parts.items():
        # image folders come sorted by class, and the first so many images stand for all in places
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(derived_seed(split)))
        shuffled += [pixels[order], labels[order]]
    return Images.normalized(*shuffled)


def _column(table: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in table.column_names:
            return name
    wanted = " or ".join(dict.fromkeys(repr(name) for name in names))
    raise ValueError(f"data must have a column {wanted}, got {', '.join(table.column_names)}")


def _pixels(decoded: Iterable[Any], names: list[str], image_shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = image_shape
    pixels = np.empty((len(names), height, width, channels), dtype=np.uint8)
    images = iter(decoded)
    for index, name in enumerate(names):
        try:
            image = next(images)
            if image.size == (width, height):
                image.load()
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(f"data must hold images that can be read, got {name}: {error}") from error
        if image.size != (width, height):
            size = f"{image.size[0]}x{image.size[1]}"
            raise ValueError(f"data must hold {width}x{height} images, got {size} in {name}")
        if image.mode not in _EIGHT_BITS:
            raise ValueError(f"data must hold images of 8 bits a channel, got mode {image.mode} in {name}")
        pixels[index] = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _labels(column: Any, where: str, classes: int) -> Tensor:
    labels = np.asarray(list(column))
    if labels.dtype.kind not in "iu":
        raise ValueError(f"data must have integers in {where}, got {labels.dtype}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"data must have labels in [0, {classes}), got {labels.min()} to {labels.max()}")
    return torch.from_numpy(labels.astype(np.int64))
