"""What the launchers and kernels of both operations share.

No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PRECISIONS = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}


@contextmanager
def launch_named(kernel: str, config: object, **tensors: Tensor) -> Iterator[None]:
    """Launch on the first tensor's device; on failure raise ``RuntimeError`` with kernel, shapes and configuration."""
    try:
        with torch.cuda.device_of(next(iter(tensors.values()))):
            yield
    except Exception as error:
        shapes = ", ".join(f"{name} {list(t.shape)} {t.dtype} on {t.device}" for name, t in tensors.items())
        raise RuntimeError(f"{kernel} failed on {shapes} with {config}: {type(error).__name__}: {error}") from error


def dtype_of_sums(dtype: torch.dtype) -> tuple[Any, torch.dtype]:
    """What sums are taken in, for Triton and for torch: fp32, or fp64 for fp64."""
    return (tl.float64, torch.float64) if dtype == torch.float64 else (tl.float32, torch.float32)


def input_precision(dtype: torch.dtype) -> str:
    """How fp32 operands are multiplied: ``torch.get_float32_matmul_precision()``."""
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    try:
        return _PRECISIONS[torch.get_float32_matmul_precision()]
    except RuntimeError:  # set through torch.backends.cuda.matmul.fp32_precision, which the older function cannot tell
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@triton.jit
def count_kernel(counted, steps):
    """Store how many steps there were: a loop whose end is an argument is the least that the interpreter must run."""
    number = tl.program_id(0)
    for _ in range(0, steps):
        number += 1
    tl.store(counted, number)


# -- tiles of sums, stored part after part: the addresses of a large one do not fit the registers all at once ---------


@triton.constexpr_function
def parts_of(rows, cols):
    """How many parts side by side a tile is stored in: 1 or 2."""
    return 2 if rows * cols > 8192 else 1


@triton.constexpr_function
def parts_of_blocks(rows, cols, height, reads):
    """The same for blocks, up to 8: no part has rows of two of them, if that is enough.

    Args:
        height: rows of a block.
        reads: whether more is read for each sum: a mask, or what it is added to.
    """
    least = 8 if reads and rows * cols > 16384 else parts_of(rows, cols)
    return next((parts for parts in (1, 2, 4, 8) if parts >= least and height % (cols // parts) == 0), least)


@triton.jit
def cut(tile, ROWS: tl.constexpr, COLS: tl.constexpr, PARTS: tl.constexpr):
    """The tile's parts from left to right, a tuple."""
    if PARTS == 1:
        return (tile,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1)))
        if PARTS == 2:
            return left, right
        else:
            return cut(left, ROWS, COLS // 2, PARTS // 2) + cut(right, ROWS, COLS // 2, PARTS // 2)
