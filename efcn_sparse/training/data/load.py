"""The images of a preset, and scikit-learn's digits at random positions on a canvas, so that translation matters."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data.cifar import load_hub_images
from efcn_sparse.training.data.idx import load_idx_images
from efcn_sparse.training.data.images import Images, derived_seed
from efcn_sparse.training.extras import require
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.task import Task


def load_data(config: RelaxConfig, seed: int = 0, *, download: bool = False) -> Images:
    """The training and test images of ``config``, normalized, limited and on its device.

    ``config.data`` is None for ``digits``. For Fashion-MNIST it is a folder with the four IDX files, gzipped or not;
    None is where Debian puts them (``dataset-fashion-mnist``). For the CIFAR presets it is a folder with parquet
    files whose names hold ``train`` and ``test``, a folder with ``train/<class>/*.png`` and ``test/<class>/*.png``, or
    a name on the Hugging Face Hub, which is fetched only if ``download`` is true.

    Args:
        seed: decides the split and the positions of ``digits``; without effect on the others.

    Raises:
        ValueError: there are no data, or not of the preset's shape; the message says how to get them.
        ModuleNotFoundError: scikit-learn or datasets is missing; the message names the extra.
    """
    preset = PRESETS[config.preset]
    with torch.device("cpu"):  # images are read and drawn there, whatever the default device is
        if preset.idx_folder is not None:
            folder = preset.idx_folder if config.data is None else Path(config.data)
            if not folder.expanduser().is_dir():
                raise ValueError(
                    f"data must be a folder with the IDX files of {config.preset}, got {str(folder)!r}: pass --data "
                    "FOLDER, or, on Debian and Ubuntu, apt install dataset-fashion-mnist"
                )
            images = load_idx_images(folder, image_shape=preset.image_shape, classes=preset.classes)
        elif not preset.hub_name:
            if config.data is not None:
                raise ValueError(f"data must be left out for the preset {config.preset}, got {config.data!r}")
            images = digits(seed)
        else:
            images = load_hub_images(
                config.data,
                hub_name=preset.hub_name,
                label=preset.label,
                image_shape=preset.image_shape,
                classes=preset.classes,
                download=download,
            )
    return images.limited(config.train_limit, config.test_limit).to(config.device)


def preset_task(config: RelaxConfig, *, download: bool = False) -> Task:
    """The task of ``config.preset``. Images are loaded when they are first asked for; those of one seed are kept."""
    preset = PRESETS[config.preset]
    depends_on_seed = not preset.hub_name and preset.idx_folder is None

    @functools.lru_cache(maxsize=1)
    def images(seed: int) -> Images:
        return load_data(config, seed, download=download)

    def of(seed: int) -> Images:
        return images(seed if depends_on_seed else 0)

    return Task(
        build=functools.partial(preset.build, preset.classes),
        train=lambda seed: (of(seed).train_x, of(seed).train_y),
        test=lambda seed: (of(seed).test_x, of(seed).test_y),
        input_shape=preset.image_shape,
        preset=config.preset,
    )


CANVAS = 20
SIDE = 8
TEST_ORIGINALS = 597


def split_originals(seed: int, count: int = 1797) -> tuple[Tensor, Tensor]:
    """Which of the ``count`` originals are for training and which for testing: two disjoint int64 index arrays."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed("split", seed)))
    return order[TEST_ORIGINALS:], order[:TEST_ORIGINALS]


def place(originals: Tensor, positions: Tensor) -> Tensor:
    """Each original on an empty canvas with its upper left corner at its position.

    Args:
        originals: ``[N, 8, 8]``.
        positions: int64 ``[N, 2]``, row and column in ``[0, 12]``.

    Returns:
        ``[N, 1, 20, 20]``.
    """
    span = torch.arange(SIDE)
    rows = (positions[:, :1] + span)[:, :, None]
    cols = (positions[:, 1:] + span)[:, None, :]
    canvas = originals.new_zeros((len(originals), CANVAS, CANVAS))
    canvas[torch.arange(len(originals))[:, None, None], rows, cols] = originals
    return canvas.unsqueeze(1)


def digits(seed: int, *, train_places: int = 2, test_places: int = 2) -> Images:
    """Scikit-learn's 1797 digits (8×8, 16 gray levels), each placed at random on a 20×20 canvas.

    Training and test images come from different originals; ``seed`` decides the split and the positions.

    Args:
        train_places, test_places: at how many positions each original is shown.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Example:
        >>> images = digits(0)
        >>> images.train_x.shape, images.test_x.shape
        (torch.Size([2400, 1, 20, 20]), torch.Size([1194, 1, 20, 20]))
    """
    datasets = require("sklearn.datasets", package="scikit-learn", extra="digits", needed_for="the preset digits")
    source = datasets.load_digits()
    pixels = torch.from_numpy(source.images.astype(np.float32)) / 16
    labels = torch.from_numpy(source.target.astype(np.int64))
    generator = torch.Generator().manual_seed(derived_seed("places", seed))
    parts: list[Tensor] = []
    for indices, places in zip(split_originals(seed, len(pixels)), (train_places, test_places), strict=True):
        shown = indices.repeat(places)
        positions = torch.randint(0, CANVAS - SIDE + 1, (len(shown), 2), generator=generator)
        parts += [place(pixels[shown], positions), labels[shown]]
    return Images.normalized(*parts)
