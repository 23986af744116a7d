r"""A residual net of one's own through the relax protocol: BatchNorm, AdamW, a cosine schedule and random crops.

    efcn-sparse relax examples/own_net.py:task --arms cnn elcn --epochs 8 --relax-times 2 8 --relax-epochs 6 \
        --lr 0.003 --batch-size 64 --workers 2 --run-dir runs/own_net

On scikit-learn's handwritten digits of 8×8 pixels. Killed and started again, it goes on where it stopped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from efcn_sparse.training import Task

TRAINING = 1297  # of the 1797 digits


class Block(nn.Module):
    """Two 3×3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


def build() -> nn.Module:
    """A residual net for 1×8×8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Block(16), nn.MaxPool2d(2), Block(16), nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


class Digits(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The handwritten digits from ``start`` to ``stop``; any map-style data set does."""

    def __init__(self, start: int, stop: int | None) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.images = torch.tensor(digits.images[start:stop], dtype=torch.float32)[:, None] / 8 - 1
        self.labels = digits.target[start:stop]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def train(seed: int) -> Digits:
    """Read when it is needed, in whichever process; the same for every seed."""
    return Digits(0, TRAINING)


def test(seed: int) -> Digits:
    """The images that no net is trained on."""
    return Digits(TRAINING, None)


def adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=0.01)


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def crop(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image moved by up to one pixel, the border filled with the background."""
    padded = functional.pad(x, (1, 1, 1, 1), value=-1.0)
    rows, columns = torch.randint(0, 3, (2, len(x), 1), generator=generator)
    rows, columns = rows + torch.arange(x.shape[2]), columns + torch.arange(x.shape[3])
    image = torch.arange(len(x))[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2), y


task = Task(build, train, test, optimizer=adamw, schedule=cosine, augment=crop)
