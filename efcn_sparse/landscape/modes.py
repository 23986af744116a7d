"""Evaluation mode for a while, and statistics of BatchNorm layers computed anew."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def evaluation_mode(*nets: nn.Module) -> Iterator[None]:
    """Evaluation mode within; each module's own mode after it."""
    before = {module: module.training for net in nets for module in net.modules()}
    try:
        for net in nets:
            net.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """The layers of ``net`` with running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [one for one in net.modules() if isinstance(one, kind) and one.track_running_stats]


@torch.no_grad()
def recompute_statistics(net: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], object]) -> None:
    """Set the running statistics of BatchNorm layers to the mean over ``batches``, all else in evaluation mode.

    Args:
        run: runs the net on one batch.
    """
    layers: list[Any] = batch_norms(net)
    net.eval()
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over batches
            layer.train()
        for batch in batches:
            run(net, batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
