"""torch's dtypes in Triton's words."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl


def dtype_of_sums(dtype: torch.dtype) -> tuple[Any, torch.dtype]:
    """What sums are taken in, for Triton and for torch: fp32, or fp64 for fp64."""
    return (tl.float64, torch.float64) if dtype == torch.float64 else (tl.float32, torch.float32)
