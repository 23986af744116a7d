"""The compiled CPU kernels of ``csrc/cpu``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.extension import extension_status
from efcn_sparse.ops.checks import DTYPES
from efcn_sparse.pattern import Structure

NAME = "cpu"


def why_not(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """The reason why this backend cannot run there, None if it can."""
    kind = torch.device(device).type
    if kind != "cpu":
        return f"its kernels run on CPU tensors, not {kind}"
    if dtype not in DTYPES:
        return f"it has no kernels for {dtype}"
    status = extension_status()
    return None if status.available else f"the compiled extension is missing: {status.reason}"


def spmm(
    y: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    structure: Structure,
    shape: Sequence[int],
    transpose: bool,
    alpha: float,
    beta: float,
) -> None:
    """y = alpha · (x Wᵀ + bias) + beta · y; with ``transpose``, x W."""
    torch.ops.efcn_sparse_cpu.spmm(y, x, values, bias, list(structure), shape, transpose, alpha, beta)


def sddmm(
    out: Tensor, a: Tensor, b: Tensor, structure: Structure, shape: Sequence[int], alpha: float, beta: float
) -> None:
    """out = alpha · (aᵀ b at the stored blocks) + beta · out, zero outside the support.

    ``out`` has the dtype of a and b, or is fp32 where they have 16 bits.
    """
    torch.ops.efcn_sparse_cpu.sddmm(out, a, b, list(structure), shape, alpha, beta)
