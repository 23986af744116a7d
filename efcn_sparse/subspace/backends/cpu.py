"""The compiled CPU kernels of ``csrc/cpu/subspace.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.ops.backends import cpu as operations
from efcn_sparse.subspace.plan import SubspacePlan

NAME = "cpu"


def why_not(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """The reason why this backend cannot run there, None if it can."""
    reason = operations.why_not(device, dtype)
    if reason is None and not hasattr(torch.ops.efcn_sparse_cpu, "subspace_squares"):
        return "the compiled extension is older than this package: rebuild it"
    return reason


def squares(values: Tensor, plan: SubspacePlan) -> Tensor:
    """float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖²."""
    return torch.ops.efcn_sparse_cpu.subspace_squares(values, plan.tensors)


def project(values: Tensor, plan: SubspacePlan, tie: bool) -> None:
    """Off-local elements ← 0; with ``tie``, local elements ← mean of their copies."""
    torch.ops.efcn_sparse_cpu.subspace_project(values, plan.tensors, tie)
