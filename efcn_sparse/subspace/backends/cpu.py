"""The compiled CPU kernels of ``csrc/cpu/subspace.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.ops.backends.cpu import NAME as NAME
from efcn_sparse.ops.backends.cpu import why_not as why_not
from efcn_sparse.subspace.plan import SubspacePlan


def squares(values: Tensor, plan: SubspacePlan) -> Tensor:
    """float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖²."""
    return torch.ops.efcn_sparse_cpu.subspace_squares(values, plan.tensors)


def project(values: Tensor, plan: SubspacePlan, tie: bool) -> None:
    """Off-local elements ← 0; with ``tie``, local elements ← mean of their copies."""
    torch.ops.efcn_sparse_cpu.subspace_project(values, plan.tensors, tie)
