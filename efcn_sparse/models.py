"""The convolutional nets of the paper, a small one for digits and two ResNets, as plain ``nn.Module`` factories."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn


def vanilla_cnn(num_classes: int = 10, channels: int = 3) -> nn.Sequential:
    """VanillaCNN of d'Ascoli et al. (2019): three convolutions and a linear head, for ``[N, channels, 32, 32]``.

    It takes images of 28 pixels too.

    Example:
        >>> sum(p.numel() for p in vanilla_cnn().parameters())
        143178
    """
    return nn.Sequential(
        nn.Conv2d(channels, 64, 4, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


def alexnet_variant(num_classes: int = 10) -> nn.Sequential:
    """The AlexNet variant of d'Ascoli et al. (2019): five convolutions and three linear layers, for ``[N, 3, 32, 32]``.

    Example:
        >>> sum(p.numel() for p in alexnet_variant().parameters())
        2848906
    """
    return nn.Sequential(
        nn.Conv2d(3, 64, 4, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Flatten(), nn.Dropout(), nn.Linear(256, 512), nn.ReLU(),
        nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes),
    )  # fmt: skip


def digits_cnn(classes: int = 10, *, side: int = 20) -> nn.Module:
    """Three convolutions for 1×20×20 images, with channel counts that blocks of 16 and 32 cover without waste.

    Args:
        side: of the images, 8 to 15 pixels or 16 to 23.

    Example:
        >>> import torch
        >>> digits_cnn()(torch.zeros(2, 1, 20, 20)).shape
        torch.Size([2, 10])
    """
    return _three_convolutions(16, side // 8, classes)


def fashion_cnn(classes: int = 10, *, width: int = 8) -> nn.Module:
    """The same for 1×28×28 images, half as wide.

    Args:
        width: channels after the first convolution; the others give twice as many.

    Example:
        >>> import torch
        >>> fashion_cnn()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return _three_convolutions(width, 3, classes)


def _three_convolutions(width: int, last_size: int, classes: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, width, 5, stride=2, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(width, 2 * width, 3, padding=1),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            relu3=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            head=nn.Linear(2 * width * last_size**2, classes),
        )
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside an identity, or beside a 1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution, in the middle with a quarter of the channels; the stride is the 3×3's."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A residual net of He et al. (2016) in four stages, for ``[N, 3, H, W]``.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: how many blocks each stage has.
        channels: what the first stage gives; each later one gives twice as many.
        num_classes: of the linear head.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        channels: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        widths = [64, *(channels * 2**stage for stage in range(4))]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*(
                block(widths[stage + bool(number)], widths[stage + 1], 2 if stage and not number else 1)
                for number in range(depth)
            ))
            for stage, depth in enumerate(depths)
        )  # fmt: skip
        self.fc = nn.Linear(widths[4], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18.

    Example:
        >>> sum(p.numel() for p in resnet18().parameters())
        11689512
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), 64, num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 in the form that is usual today, with the stride in the 3×3 convolution.

    Example:
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in resnet50().parameters())
        25557032
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), 256, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vanilla": vanilla_cnn,
    "alexnet": alexnet_variant,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
