"""Kernels in Triton: one pass over the stored blocks, on any GPU that Triton compiles for.

The module beside this one imports Triton; this one does not, so that the package works without it.
"""

from __future__ import annotations

from torch import Tensor

from efcn_sparse.ops.backends.triton import NAME as NAME
from efcn_sparse.ops.backends.triton import ONLY_BY_NAME as ONLY_BY_NAME
from efcn_sparse.ops.backends.triton import why_not as why_not
from efcn_sparse.subspace.plan import SubspacePlan


def squares(values: Tensor, plan: SubspacePlan) -> Tensor:
    """float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖²."""
    from efcn_sparse.subspace.backends.triton import subspace_kernel

    return subspace_kernel.squares(values, plan)


def project(values: Tensor, plan: SubspacePlan, tie: bool) -> None:
    """Off-local elements ← 0; with ``tie``, local elements ← mean of their copies."""
    from efcn_sparse.subspace.backends.triton import subspace_kernel

    subspace_kernel.project(values, plan, tie)
