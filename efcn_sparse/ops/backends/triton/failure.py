"""A launch that fails says which kernel it was, on what, and how it was cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def launch_named(kernel: str, config: object, **tensors: Tensor) -> Iterator[None]:
    """Launch on the first tensor's device; on failure raise ``RuntimeError`` with kernel, shapes and configuration."""
    try:
        with torch.cuda.device_of(next(iter(tensors.values()))):
            yield
    except Exception as error:
        shapes = ", ".join(f"{name} {list(t.shape)} {t.dtype} on {t.device}" for name, t in tensors.items())
        raise RuntimeError(f"{kernel} failed on {shapes} with {config}: {type(error).__name__}: {error}") from error
