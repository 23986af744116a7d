"""Kernels in Triton: one pass over the stored blocks, on any GPU that Triton compiles for.

The module beside this one imports Triton; this one does not, so that the package works without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.ops.backends import triton as operations
from efcn_sparse.subspace.plan import SubspacePlan

NAME, ONLY_BY_NAME = operations.NAME, operations.ONLY_BY_NAME


def why_not(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """The reason why this backend cannot run there, None if it can."""
    return operations.why_not(device, dtype)


def squares(values: Tensor, plan: SubspacePlan) -> Tensor:
    """float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖²."""
    from efcn_sparse.subspace.backends.triton import subspace_kernel

    return subspace_kernel.squares(values, plan)


def project(values: Tensor, plan: SubspacePlan, tie: bool) -> None:
    """Off-local elements ← 0; with ``tie``, local elements ← mean of their copies."""
    from efcn_sparse.subspace.backends.triton import subspace_kernel

    subspace_kernel.project(values, plan, tie)
