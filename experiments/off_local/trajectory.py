"""The nets of one arm of a relax run, epoch by epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from efcn_sparse.training.config import RelaxConfig
from efcn_sparse.training.epoch import train_epoch
from efcn_sparse.training.images import Images
from efcn_sparse.training.nets import build_cnn, kept_epochs, load_arm
from efcn_sparse.training.plan import FULL
from experiments.off_local.layers import embedded


def cnn_at(config: RelaxConfig, seed: int, time: int, images: Images) -> nn.Module:
    """The CNN of ``run_relax`` after ``time`` epochs."""
    return last_of(trained(build_cnn(config.preset, seed), config, seed, 0, time, images))


def trained(
    net: nn.Module, config: RelaxConfig, seed: int, first: int, last: int, images: Images
) -> Iterator[tuple[int, nn.Module]]:
    """``(epoch, net)`` from epoch ``first``, before any step, to ``last``, trained as ``run_relax`` would.

    The net is the same object each time, and goes on training when the next one is asked for.
    """
    lr = config.relaxed_lr if embedded(net) else config.lr
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay)
    yield first, net
    for epoch in range(first + 1, last + 1):
        train_epoch(net, optimizer, images, batch_size=config.batch_size, seed=seed, epoch=epoch)
        yield epoch, net


def recorded(run_dir: Path, seed: int, time: int) -> Iterator[tuple[int, nn.Module]]:
    """The same from a run directory, at the epochs of which it holds checkpoints.

    Raises:
        ValueError: ``run_dir`` is no run, or has no ``efcn-full`` with this seed and relax time.
    """
    epochs = kept_epochs(run_dir, FULL, seed, time)
    if len(epochs) < 2 or epochs[0] != time:
        raise ValueError(f"run_dir must hold {FULL} of seed {seed} at relax time {time}, {run_dir} has epochs {epochs}")
    for epoch in epochs:
        yield epoch, load_arm(run_dir, FULL, seed, time, epoch)


def last_of(nets: Iterator[tuple[int, nn.Module]]) -> nn.Module:
    """The net at the end of a trajectory."""
    return deque(nets, maxlen=1).pop()[1]
