"""The small CNN of the digits preset."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def digits_cnn(classes: int = 10) -> nn.Module:
    """Three convolutions for 1×20×20 images, with channel counts that blocks of 16 and 32 cover without waste.

    Example:
        >>> import torch
        >>> digits_cnn()(torch.zeros(2, 1, 20, 20)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 5, stride=2, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(32, 32, 3, padding=1),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            head=nn.Linear(32 * 2 * 2, classes),
        )
    )
