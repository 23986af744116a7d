"""Seeds for each purpose, derived and not drawn, so that nothing about them has to be stored."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derived_seed(purpose: str, *numbers: int) -> int:
    """A seed in ``[0, 2**63)`` that depends on all the arguments and nothing else.

    Example:
        >>> derived_seed("order", 0, 1) == derived_seed("order", 0, 1) != derived_seed("order", 1, 0)
        True
    """
    text = "/".join((purpose, *(str(number) for number in numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def order_of_epoch(seed: int, epoch: int, count: int) -> Tensor:
    """The order in which ``count`` images are shown in an epoch: int64 ``[count]``, the same for every arm."""
    generator = torch.Generator("cpu").manual_seed(derived_seed("order", seed, epoch))
    return torch.randperm(count, generator=generator, device="cpu")
