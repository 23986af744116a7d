"""The experiments that are ready to run, as data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from efcn_sparse.models import alexnet_variant, digits_cnn, fashion_cnn, vanilla_cnn
from efcn_sparse.training.data.cifar import load_hub_images
from efcn_sparse.training.data.digits import aligned_digits, digits
from efcn_sparse.training.data.idx import load_idx_images
from efcn_sparse.training.data.images import Images


@dataclass(frozen=True)
class Preset:
    """An architecture, the images it takes, and settings of :class:`RelaxConfig` that differ from the original's.

    Attributes:
        build: the CNN, freshly initialized from torch's generator, for so many classes.
        image_shape: (channels, height, width).
        classes: how many classes there are.
        draw: the images of a seed; None: they are read.
        read: the images that ``RelaxConfig.data`` names, given ``image_shape``, ``classes`` and ``download``.
        data, net: the two in words, for a report.
        settings: fields of RelaxConfig.
    """

    build: Callable[[int], nn.Module]
    image_shape: tuple[int, int, int]
    classes: int
    draw: Callable[[int], Images] | None = None
    read: Callable[..., Images] | None = None
    data: str = ""
    net: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


_DIGITS = {
    "seeds": (0, 1),
    "arms": ("cnn", "fcn", "elcn", "efcn-dilated1", "efcn-full"),
    "cnn_epochs": 30,
    "relax_epochs": 16,
    "fcn_epochs": 30,
    "snapshots": 5,
    "batch_size": 50,
}

_ALIGNED = {
    "seeds": (0, 1, 2, 3, 4),
    "arms": ("cnn", "fcn", "elcn", "efcn-full"),
    "cnn_epochs": 40,
    "relax_epochs": 40,
    "fcn_epochs": 80,
    "relax_times": (0, 10, 40),
    "batch_size": 25,
    "train_limit": 300,
}

_FASHION = {
    "seeds": (0, 1, 2, 3, 4),
    "arms": ("cnn", "elcn", "efcn-full"),
    "cnn_epochs": 60,
    "relax_epochs": 60,
    "relax_times": (0, 20, 60),
    "lr": 0.05,
    "batch_size": 50,
    "train_limit": 1000,
}

_CIFAR10, _CIFAR100 = (
    f"CIFAR-{n} (Krizhevsky 2009): images of 32×32 pixels in {n} classes, as they are" for n in (10, 100)
)
_cifar10 = functools.partial(load_hub_images, hub_name="uoft-cs/cifar10", label="label")
_cifar100 = functools.partial(load_hub_images, hub_name="uoft-cs/cifar100", label="fine_label")
_DIGITS_DATA = "scikit-learn's 1,797 handwritten digits (Alpaydin and Kaynak, UCI 1998), each of 8×8 pixels"
_FASHION_DATA = "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): gray images of 28×28 pixels in 10 classes of clothes"
_VANILLA = "the paper's VanillaCNN, three convolutions and a linear head"
_ALEXNET = "the paper's AlexNet variant, five convolutions and three linear layers"
_SMALL = "three convolutions and a linear head"

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        digits_cnn, (1, 20, 20), 10, digits, settings=_DIGITS, net=_SMALL,
        data=f"{_DIGITS_DATA}, at random positions on a canvas of 20×20, so that translation matters",
    ),
    "digits-aligned": Preset(
        functools.partial(digits_cnn, side=8), (1, 8, 8), 10, aligned_digits, settings=_ALIGNED, net=_SMALL,
        data=f"{_DIGITS_DATA}, as they are, so that translation hardly matters",
    ),
    "fashion-mnist": Preset(
        fashion_cnn, (1, 28, 28), 10, read=load_idx_images, settings=_FASHION, data=_FASHION_DATA, net=_SMALL
    ),
    "vanilla-fashion-mnist": Preset(
        functools.partial(vanilla_cnn, channels=1), (1, 28, 28), 10, read=load_idx_images, data=_FASHION_DATA,
        net=_VANILLA,
    ),
    "vanilla-cifar10": Preset(vanilla_cnn, (3, 32, 32), 10, read=_cifar10, data=_CIFAR10, net=_VANILLA),
    "alexnet-cifar10": Preset(alexnet_variant, (3, 32, 32), 10, read=_cifar10, data=_CIFAR10, net=_ALEXNET),
    "alexnet-cifar100": Preset(alexnet_variant, (3, 32, 32), 100, read=_cifar100, data=_CIFAR100, net=_ALEXNET),
}  # fmt: skip
