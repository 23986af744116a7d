"""A classification data set that lies in memory whole, and the order in which its images are shown."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def derived_seed(purpose: str, *numbers: int) -> int:
    """A seed in ``[0, 2**63)`` that depends on all the arguments and nothing else.

    Example:
        >>> derived_seed("order", 0, 1) == derived_seed("order", 0, 1) != derived_seed("order", 1, 0)
        True
    """
    text = "/".join((purpose, *(str(number) for number in numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def order_of_epoch(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which ``count`` images are shown in an epoch: int64 ``[count]``, the same for every arm."""
    generator = torch.Generator("cpu").manual_seed(derived_seed("order", seed, epoch))
    return torch.randperm(count, generator=generator, device="cpu")


@dataclass(frozen=True)
class Images:
    """Images as one tensor and their classes.

    Attributes:
        train_x, test_x: fp32 ``[N, C, H, W]`` in channels-last memory.
        train_y, test_y: int64 ``[N]``.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @classmethod
    def normalized(cls, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Images:
        """Bring each channel to zero mean and unit deviation, both measured on the training images."""
        train_x, test_x = (x.to(torch.float32, memory_format=torch.channels_last, copy=True) for x in (train_x, test_x))
        deviation, mean = torch.std_mean(train_x, dim=(0, 2, 3), keepdim=True)
        for x in (train_x, test_x):
            x.sub_(mean).div_(deviation.clamp(min=1e-12))
        return cls(train_x, train_y.long(), test_x, test_y.long())
