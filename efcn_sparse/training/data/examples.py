"""Training or test examples in batches: a pair of tensors, or a map-style data set behind torch's loader."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

Chunk = Tensor | slice  # which examples a batch holds: int64 indices on the CPU, or a range of them


class Examples:
    """The examples of one field of a :class:`Task`.

    Args:
        field: ``train`` or ``test``, for messages.
        source: a pair of tensors ``(x, y)``, or anything with ``__len__`` and ``__getitem__``.
        limit: only the first so many; None takes all.
        device: where batches are to be; a pair is moved there whole.
        collate: makes a batch ``(x, y)`` of a list of examples; None is torch's own.
        workers: of torch's loader; a pair needs none.

    Raises:
        ValueError: ``source`` is neither, or empty.
    """

    def __init__(
        self,
        field: str,
        source: Any,
        *,
        limit: int | None = None,
        device: str = "cpu",
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
    ) -> None:
        self.field, self.device, self._collate, self._workers = field, device, collate, workers
        self.pair: tuple[Tensor, Tensor] | None = None
        if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(x, Tensor) for x in source):
            x, y = source
            if not x.dim() or not y.dim() or len(x) != len(y):
                raise ValueError(f"{field} must be tensors of one length, got {list(x.shape)} and {list(y.shape)}")
            self.pair, count = (x[:limit].to(device), y[:limit].to(device)), len(x)
        elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
            count = len(source)
        else:
            raise ValueError(
                f"{field} must be a pair of tensors or a map-style data set (with __len__ and __getitem__), got "
                f"{type(source).__name__}"
            )
        if not count:
            raise ValueError(f"{field} must hold examples, got none")
        self._source, self._count = source, count if limit is None else min(limit, count)

    def __len__(self) -> int:
        return self._count

    def limited(self, count: int) -> Examples:
        """The first ``count`` of them."""
        fewer = copy.copy(self)
        fewer._count = min(count, len(self))
        if self.pair is not None:
            fewer.pair = self.pair[0][:count], self.pair[1][:count]
        return fewer

    def samples(self, count: int) -> list[Tensor]:
        """All of a pair; of a data set so many examples, spread evenly, drawn from generators that are the same."""
        if self.pair is not None:
            return list(self.pair)
        chosen = torch.linspace(0, len(self) - 1, min(count, len(self))).long().unique()
        return [tensor for batch in self.same_batches([chosen], 0) for tensor in batch]

    def same_batches(self, chunks: Sequence[Chunk], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """:meth:`batches` whose draws follow from ``seed`` alone: a data set also draws from torch's generator."""
        if self.pair is None:
            torch.manual_seed(seed)
        return self.batches(chunks, seed)

    def batches(self, chunks: Sequence[Chunk], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch ``(x, y)`` on the device for each of ``chunks``; images in channels-last memory.

        What a data set draws from the global generators of torch, NumPy and Python follows from ``seed``, and from
        torch's generator as it is if there are no workers.

        Raises:
            ValueError: the source raised an error, or gave something else than two tensors of as many examples.
        """
        if self.pair is not None:
            x, y = self.pair
            for chosen in chunks:
                if isinstance(chosen, slice):
                    yield x[chosen], y[chosen]
                else:
                    yield _rows(x, chosen.to(x.device)), y[chosen.to(x.device)]
            return
        indices = [list(range(*c.indices(len(self)))) if isinstance(c, slice) else c.tolist() for c in chunks]
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002  # data sets draw from the global generator
        generator = torch.Generator("cpu").manual_seed(seed)
        loader = DataLoader(
            self._source, batch_sampler=indices, num_workers=self._workers, collate_fn=self._collate,
            generator=generator, multiprocessing_context="fork" if self._workers else None,
        )  # fmt: skip
        with blaming(self.field):
            batches = iter(loader)
        for wanted in indices:
            with blaming(self.field):
                batch = next(batches)
            yield self._checked(batch, len(wanted))

    def _checked(self, batch: Any, count: int) -> tuple[Tensor, Tensor]:
        pair = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        if len(pair) != 2 or not all(isinstance(x, Tensor) and x.dim() and len(x) == count for x in pair):
            got = ", ".join(str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in pair)
            raise ValueError(f"{self.field} must give batches of two tensors x, y of {count} examples each, got {got}")
        x, y = (part.to(self.device) for part in pair)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, y


@contextlib.contextmanager
def blaming(field: str) -> Iterator[None]:
    """Tells which field of a task an error inside the ``with`` block came from; no field, no word."""
    try:
        yield
    except Exception as error:
        if not field:
            raise
        raise ValueError(f"{field} raised {type(error).__name__}: {error}") from error


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    if x.dim() != 4:
        return x[chosen]
    # indexing the channels-last storage as rows keeps the batch channels-last without a second copy
    return x.permute(0, 2, 3, 1)[chosen].permute(0, 3, 1, 2)
