"""The images of a preset, and the task that it is."""

from __future__ import annotations

import functools

from efcn_sparse.default_device import on_cpu
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.data.images import Images
from efcn_sparse.training.presets import PRESETS
from efcn_sparse.training.task import Task


def load_data(config: RelaxConfig, seed: int = 0, *, download: bool = False) -> Images:
    """The training and test images of ``config``, normalized, limited and on its device.

    ``config.data`` is None for the presets of digits. For Fashion-MNIST it is a folder with the four IDX files, gzipped
    or not; None is where Debian puts them (``dataset-fashion-mnist``). For the CIFAR presets it is a folder with
    parquet files whose names hold ``train`` and ``test``, a folder with ``train/<class>/*.png`` and
    ``test/<class>/*.png``, or a name on the Hugging Face Hub, which is fetched only if ``download`` is true.

    Args:
        seed: decides the split and the positions of ``digits``, and which training images come first in
            ``digits-aligned``; without effect on the others.

    Raises:
        ValueError: there are no data, or not of the preset's shape; the message says how to get them.
        ModuleNotFoundError: scikit-learn or datasets is missing; the message names the extra.
    """
    preset = PRESETS[config.preset]
    with on_cpu():
        if preset.draw is not None:
            if config.data is not None:
                raise ValueError(f"data must be left out for the preset {config.preset}, got {config.data!r}")
            images = preset.draw(seed)
        else:
            shape, classes = preset.image_shape, preset.classes
            images = preset.read(config.data, image_shape=shape, classes=classes, download=download)
    train, test = slice(config.train_limit), slice(config.test_limit)
    used = images.train_x[train], images.train_y[train], images.test_x[test], images.test_y[test]
    return Images(*(tensor.to(config.device) for tensor in used))


def preset_task(config: RelaxConfig, *, download: bool = False) -> Task:
    """The task of ``config.preset``. Images are loaded when they are first asked for; those of one seed are kept."""
    preset = PRESETS[config.preset]

    @functools.lru_cache(maxsize=1)
    def images(seed: int) -> Images:
        return load_data(config, seed, download=download)

    def of(seed: int) -> Images:
        return images(0 if preset.draw is None else seed)

    return Task(
        build=functools.partial(preset.build, preset.classes),
        train=lambda seed: (of(seed).train_x, of(seed).train_y),
        test=lambda seed: (of(seed).test_x, of(seed).test_y),
        input_shape=preset.image_shape,
        preset=config.preset,
    )
