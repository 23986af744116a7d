"""A classification data set that lies in memory whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def to(self, device: torch.device | str) -> Images:
        """The same on ``device``."""
        return Images(*(tensor.to(device) for tensor in (self.train_x, self.train_y, self.test_x, self.test_y)))

    def limited(self, train: int | None, test: int | None) -> Images:
        """The first ``train`` training and ``test`` test images; None keeps all."""
        return Images(self.train_x[:train], self.train_y[:train], self.test_x[:test], self.test_y[:test])
