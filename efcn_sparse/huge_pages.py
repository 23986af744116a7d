"""Large tensors in pages of 2 MiB."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.extension import extension_status


def in_huge_pages(fresh: Tensor) -> Tensor:
    """The tensor itself, to which nothing was written yet: Linux is asked for huge pages where it is large.

    A page fault for every 4 KiB takes longer than to write them.
    """
    if type(fresh) is Tensor and fresh.is_cpu and extension_status().available:
        torch.ops.efcn_sparse_cpu.in_huge_pages(fresh)
    return fresh
