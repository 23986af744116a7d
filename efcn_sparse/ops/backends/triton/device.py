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


INTERPRETER = Device("interpreter", 1, 1 << 30)


def is_interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@functools.cache
def why_not_interpreting() -> str | None:
    """Why the Triton installed cannot interpret kernels here, None if it can: 3.6 counts as NumPy 2.4 forbids."""
    import numpy
    import triton

    from efcn_sparse.ops.backends.triton import launch

    counted = torch.zeros((), dtype=torch.int32)
    try:
        launch.count_kernel[(1,)](counted, 3)
    except Exception as error:
        first = str(error).partition("\n")[0]
        return f"Triton {triton.__version__} cannot interpret its kernels with NumPy {numpy.__version__}: {first}"
    return None


def must_widen(dtype: torch.dtype) -> bool:
    """Whether operands must be fp32 copies: the interpreter multiplies the bits of bf16 as integers, and truncates."""
    return dtype == torch.bfloat16 and is_interpreting()


def device_of(device: torch.device) -> Device:
    """What is known of a GPU."""
    if is_interpreting():
        return INTERPRETER
    return _device(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _device(index: int) -> Device:
    found = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Device(found.gcnArchName.split(":")[0], found.multi_processor_count, 65536, found.name)
    shared = getattr(found, "shared_memory_per_block_optin", 99 * 1024)
    return Device(f"sm{found.major}{found.minor}", found.multi_processor_count, shared, found.name)
