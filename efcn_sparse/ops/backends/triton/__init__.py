"""Kernels in Triton: any GPU that it compiles for, and CPU tensors under its interpreter.

The modules beside this one import Triton; this one does not, so that the package works without it. Block rows that are
multiplied together share tiles of x: what is not finite in x may reach the neighbors of the rows that need it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.ops.backends.triton import device as devices
from efcn_sparse.ops.checks import DTYPES
from efcn_sparse.pattern import BlockPattern, Structure

NAME = "triton"
ONLY_BY_NAME = ("cpu",)  # interpreting is right, and very slow
_LEAST_CAPABILITY = (8, 0)


def why_not(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """The reason why this backend cannot run there, None if it can."""
    device = torch.device(device)
    if device.type not in ("cuda", "cpu"):
        return f"its kernels run on CUDA and ROCm GPUs, not {device.type}"
    if dtype not in DTYPES:
        return f"it has no kernels for {dtype}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install efcn-sparse[triton]"
    if devices.is_interpreting():
        return devices.why_not_interpreting()
    if device.type == "cpu":
        return (
            "its kernels run on GPUs; Triton interprets them on CPU tensors if TRITON_INTERPRET=1 is set at the start"
        )
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if device.index is not None and device.index >= torch.cuda.device_count():
        return f"torch sees {torch.cuda.device_count()} GPUs, none is {device}"
    if not torch.version.hip and torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        found, least = torch.cuda.get_device_capability(device), _LEAST_CAPABILITY
        which = f"{device} ({torch.cuda.get_device_name(device)})"
        return f"it needs compute capability {least[0]}.{least[1]} or more, {which} has {found[0]}.{found[1]}"
    return None


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
    from efcn_sparse.ops.backends.triton import spmm_kernel

    spmm_kernel.run(y, x, values, bias, structure, shape, transpose, alpha, beta)


def sddmm(
    out: Tensor, a: Tensor, b: Tensor, structure: Structure, shape: Sequence[int], alpha: float, beta: float
) -> None:
    """out = alpha · (aᵀ b at the stored blocks) + beta · out, zero outside the support."""
    from efcn_sparse.ops.backends.triton import sddmm_kernel

    sddmm_kernel.run(out, a, b, structure, shape, alpha, beta)


def choices(pattern: BlockPattern, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, str]:
    """For each operation the tile that a call with that batch takes, and why."""
    from efcn_sparse.ops.backends.triton import plan, tiles

    found = {}
    for operation in tiles.OPERATIONS:
        problem = plan.Problem.of(operation, pattern, batch, dtype, devices.device_of(device))
        try:
            config, why = plan.choice_for(problem)
            found[operation] = f"{config} ({why})"
        except (RuntimeError, ValueError) as error:  # a bad tuning file, or one whose tiles do not fit
            found[operation] = f"none: {error}"
    return found
