"""The images of a preset."""

from __future__ import annotations

import torch

from efcn_sparse.training.cifar import load_hub_images
from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.digits import digits
from efcn_sparse.training.images import Images
from efcn_sparse.training.presets import PRESETS


def load_data(config: RelaxConfig, seed: int = 0, *, download: bool = False) -> Images:
    """The training and test images of ``config``, normalized, limited and on its device.

    ``config.data`` is None for ``digits``. For the CIFAR presets it is a folder with parquet files whose names hold
    ``train`` and ``test``, a folder with ``train/<class>/*.png`` and ``test/<class>/*.png``, or a name on the Hugging
    Face Hub, which is fetched only if ``download`` is true.

    Args:
        seed: decides the split and the positions of ``digits``; without effect on CIFAR.

    Raises:
        ValueError: there are no data, or not of the preset's shape; the message says how to get them.
        ModuleNotFoundError: scikit-learn or datasets is missing; the message names the extra.
    """
    preset = PRESETS[config.preset]
    with torch.device("cpu"):  # images are read and drawn there, whatever the default device is
        if not preset.hub_name:
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


def depends_on_seed(config: RelaxConfig) -> bool:
    """Whether :func:`load_data` gives other images for another seed."""
    return not PRESETS[config.preset].hub_name
