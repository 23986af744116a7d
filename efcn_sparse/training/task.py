"""What is trained, in plain PyTorch: a net, its data, its loss, its optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from efcn_sparse.default_device import on_cpu
from efcn_sparse.embedding.example_run import random_numbers_kept
from efcn_sparse.training.data.examples import Examples, blaming
from efcn_sparse.training.data.images import derived_seed


def classification(output: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The accuracy of class scores ``[N, classes, ...]`` for classes ``[N, ...]``: right or wrong, one by one."""
    return {"accuracy": output.argmax(1) == y}


@dataclass(frozen=True)
class Task:
    """What :func:`run_relax` trains.

    Nothing here is called before the run, and everything is called again when a run goes on; so functions, not
    iterators, and no state of their own between two calls.

    Args:
        build: makes the CNN, freshly initialized from torch's generator.
        train, test: a map-style data set of examples ``(x, y)``, or a pair of tensors; or a function of the seed that
            gives one. Batches of images are brought into channels-last memory.
        loss: ``(output, y)`` to the mean over the batch, a scalar.
        metrics: ``(output, y)`` to numbers by name, each a tensor with one entry per example, or their mean.
            ``accuracy`` must be among them; others get columns ``train_<name>`` and ``test_<name>`` in metrics.csv.
        optimizer: ``(parameters, lr)`` to any optimizer of torch's kind; None is SGD with the configuration's
            ``momentum`` and ``weight_decay``.
        schedule: ``(optimizer, steps)`` to a scheduler, which is stepped after each of so many steps; None keeps the
            rate. Each training run has its own, the relaxed ones from their embedding on.
        augment: ``(x, y, generator)`` to the batch ``(x, y)`` that is trained on. Draw from ``generator``, which is on
            the CPU: then a run that was killed goes on with the same draws.
        collate, workers: of torch's loader, for data sets.
        input_shape: of one input, without the batch; None: that of the first training example.
        preset: the preset that it is; empty for a task of one's own.

    Example:
        >>> x, y = torch.randn(40, 1, 8, 8), torch.randint(2, (40,))
        >>> def build():
        ...     return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
        >>> task = Task(build, (x, y), (x, y), optimizer=lambda parameters, lr: torch.optim.AdamW(parameters, lr))
        >>> task.convolutions
        ('0',)
    """

    build: Callable[[], nn.Module]
    train: Any
    test: Any
    loss: Callable[[Any, Tensor], Tensor] = functional.cross_entropy
    metrics: Callable[[Any, Tensor], Mapping[str, Any]] = classification
    optimizer: Callable[[list[nn.Parameter], float], Optimizer] | None = None
    schedule: Callable[[Optimizer, int], LRScheduler] | None = None
    augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0
    input_shape: tuple[int, ...] | None = None
    preset: str = ""

    def blaming(self, field: str) -> AbstractContextManager[None]:
        """What names ``field`` in errors raised inside the ``with`` block; presets speak for themselves."""
        return blaming("" if self.preset else field)

    def examples(self, field: str, seed: int, *, limit: int | None = None, device: str = "cpu") -> Examples:
        """The training or the test examples of ``seed``."""
        source = getattr(self, field)
        if self.depends_on_seed(field):
            with self.blaming(field):
                source = source(seed)
        return Examples(field, source, limit=limit, device=device, collate=self.collate, workers=self.workers)

    def depends_on_seed(self, field: str) -> bool:
        """Whether the examples of ``train`` or ``test`` are given by a function of the seed."""
        return callable(getattr(self, field)) and not hasattr(getattr(self, field), "__getitem__")

    def fresh(self, seed: int) -> nn.Module:
        """The CNN with the initial weights that ``seed`` gives; the caller's generators stay as they are."""
        with torch.random.fork_rng(devices=[]), on_cpu():
            # torch.manual_seed would reseed every GPU as well
            torch.default_generator.manual_seed(derived_seed("cnn", seed))
            with self.blaming("build"):
                cnn = self.build()
        if not isinstance(cnn, nn.Module):
            raise ValueError(f"build must give a torch.nn.Module, got {type(cnn).__name__}")
        sides = {parameter.dim() for parameter in cnn.parameters()}
        return cnn if 5 in sides else cnn.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @functools.cached_property
    def convolutions(self) -> tuple[str, ...]:
        """The names of the CNN's convolutions, which are those of the layers of its embeddings."""
        return tuple(name for name, module in self.fresh(0).named_modules() if isinstance(module, _ConvNd))

    @functools.cached_property
    def example(self) -> Tensor:
        """Two inputs, always the same: noise of ``input_shape``, or the first training example twice."""
        if self.input_shape is not None:
            generator = torch.Generator("cpu").manual_seed(derived_seed("example"))
            return torch.randn((2, *self.input_shape), generator=generator, device="cpu")
        with random_numbers_kept([]):
            (first,) = self.examples("train", 0).same_batches([slice(0, 1)], 0)
        return torch.cat((first[0], first[0]))
