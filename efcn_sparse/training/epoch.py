"""One epoch of plain SGD, and the evaluation of loss and accuracy after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from efcn_sparse.fused import updating
from efcn_sparse.growth import Growth
from efcn_sparse.training.images import Images, derived_seed, order_of_epoch

EVALUATION_BATCH = 2000
TRAIN_EVALUATED = 10_000

T = TypeVar("T")


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    images: Images,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    watch: Callable[[nn.Module], contextlib.AbstractContextManager[T]] | None = None,
    growth: Growth | None = None,
) -> T | None:
    """Show every training image once, in the order of ``(seed, epoch)``; the last batch may be smaller.

    Args:
        watch: makes what is entered around forward and backward of one step, that of the last whole batch: the gradient
            there is of as many images as others, and of nearly the weights that the epoch ends with.
        growth: moves blocks, where it is time.

    Returns:
        What ``watch`` gave; None without it.
    """
    model.train()
    torch.manual_seed(derived_seed("dropout", seed, epoch))
    order = order_of_epoch(seed, epoch, len(images.train_x)).to(images.train_x.device)
    watched = max(0, len(order) // batch_size - 1)
    seen: T | None = None
    for step, chosen in enumerate(order.split(batch_size)):
        with contextlib.ExitStack() as around:
            if watch is not None and step == watched:
                seen = around.enter_context(watch(model))
            if growth is not None:
                around.enter_context(growth.watch())
            loss = functional.cross_entropy(model(_rows(images.train_x, chosen)), images.train_y[chosen])
            optimizer.zero_grad()
            around.enter_context(updating(optimizer))
            loss.backward()
        optimizer.step()
        if growth is not None:
            growth.step()
    return seen


def measure(model: nn.Module, images: Images) -> dict[str, float]:
    """Mean cross-entropy and accuracy in evaluation mode, on the test images and on up to 10,000 training images."""
    train = evaluate(model, images.train_x[:TRAIN_EVALUATED], images.train_y[:TRAIN_EVALUATED])
    test = evaluate(model, images.test_x, images.test_y)
    return {"train_loss": train[0], "train_accuracy": train[1], "test_loss": test[0], "test_accuracy": test[1]}


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """``(mean cross-entropy, accuracy in [0, 1])`` of ``model`` in evaluation mode; its mode is restored.

    Args:
        x: ``[N, C, H, W]``.
        y: int64 ``[N]``.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=x.device)
    right = torch.zeros((), dtype=torch.int64, device=x.device)
    for part, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        logits = model(part)
        loss += functional.cross_entropy(logits, labels, reduction="sum").double()
        right += (logits.argmax(1) == labels).sum()
    model.train(was_training)
    return float(loss) / len(y), float(right) / len(y)


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    # indexing the channels-last storage as rows keeps the batch channels-last without a second copy
    return x.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)
