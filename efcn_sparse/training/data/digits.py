"""Scikit-learn's handwritten digits: at random positions on a canvas, so that translation matters, or as they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from efcn_sparse.importing import find_package
from efcn_sparse.training.data.images import Images, derived_seed

CANVAS = 20
SIDE = 8
ORIGINALS = 1797
TEST_ORIGINALS = 597
ALIGNED_TRAIN = 897


def split_originals(seed: int) -> tuple[Tensor, Tensor]:
    """Which of the originals are for training and which for testing: two disjoint int64 index arrays."""
    order = torch.randperm(ORIGINALS, generator=torch.Generator().manual_seed(derived_seed("split", seed)))
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


def digits(seed: int) -> Images:
    """Scikit-learn's 1797 digits (8×8, 16 gray levels), each placed at random at two places of a 20×20 canvas.

    Training and test images come from different originals; ``seed`` decides the split and the positions.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Example:
        >>> images = digits(0)
        >>> images.train_x.shape, images.test_x.shape
        (torch.Size([2400, 1, 20, 20]), torch.Size([1194, 1, 20, 20]))
    """
    pixels, labels = _originals("digits")
    generator = torch.Generator().manual_seed(derived_seed("places", seed))
    parts: list[Tensor] = []
    for indices in split_originals(seed):
        shown = indices.repeat(2)
        positions = torch.randint(0, CANVAS - SIDE + 1, (len(shown), 2), generator=generator)
        parts += [place(pixels[shown], positions), labels[shown]]
    return Images.normalized(*parts)


def aligned_digits(seed: int) -> Images:
    """The digits as they are, 8×8: 897 for training, in an order that ``seed`` decides, and always the same 900 tests.

    Source: as of :func:`digits`.

    Example:
        >>> aligned_digits(0).test_x.shape
        torch.Size([900, 1, 8, 8])
    """
    pixels, labels = _originals("digits-aligned")
    # settings were chosen on these training images alone, so the split must stay what it is
    split = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(12345))
    order = torch.randperm(ALIGNED_TRAIN, generator=torch.Generator().manual_seed(derived_seed("order", seed)))
    train, test = split[:ALIGNED_TRAIN][order], split[ALIGNED_TRAIN:]
    return Images.normalized(pixels[train].unsqueeze(1), labels[train], pixels[test].unsqueeze(1), labels[test])


def _originals(preset: str) -> tuple[Tensor, Tensor]:
    """Gray values from 0 to 1, ``[1797, 8, 8]``, and classes."""
    found = find_package("sklearn", package="scikit-learn", extra="digits", needed_for=f"the preset {preset}")
    # what sklearn.datasets.load_digits reads, without two seconds of imports
    rows = np.loadtxt(found / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.float32)
    return torch.from_numpy(rows[:, :-1]).reshape(-1, SIDE, SIDE) / 16, torch.from_numpy(rows[:, -1].astype(np.int64))
