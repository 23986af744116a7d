"""What the kernels need to know of the device they run on."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Architecture, how many multiprocessors it has, bytes of shared memory that a program may have, and its name."""

    arch: str
    processors: int
    shared_memory: int
    name: str = ""

    @property
    def fetches_tiles(self) -> bool:
        """Whether it has an engine that copies tiles into shared memory by itself: Hopper and later."""
        return not self.arch.startswith(("sm8", "gfx"))


INTERPRETER = Device("interpreter", 1, 1 << 30)


def is_interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def must_widen(dtype: torch.dtype) -> bool:
    """Whether operands must be fp32 copies: the interpreter multiplies the bits of bf16 as integers, and truncates."""
    return dtype == torch.bfloat16 and is_interpreting()


def device_of(tensor: torch.Tensor) -> Device:
    """The device of ``tensor``."""
    return INTERPRETER if is_interpreting() else _device(tensor.device.index)


@functools.cache
def _device(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Device(found.gcnArchName.split(":")[0], found.multi_processor_count, 65536, found.name)
    shared = getattr(found, "shared_memory_per_block_optin", 99 * 1024)
    return Device(f"sm{found.major}{found.minor}", found.multi_processor_count, shared, found.name)
