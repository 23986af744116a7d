"""Memory of large CPU tensors: in pages of 2 MiB, and kept when it is freed."""

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


def empty_cache() -> None:
    """Give back the memory of freed tensors that is kept for the next ones, as ``torch.cuda.empty_cache`` does.

    The layers and operations of this library keep up to 256 MiB of what they allocated on the CPU in pieces of 256 KiB
    and more: outputs, gradients, and what kernels copy. New memory from the system costs a page fault for every 4 KiB,
    which in a training step can take longer than to compute what is written there. What is kept and what is in use are
    together at most half as much again as what was in use at one time, or 32 MiB more. Where memory runs out, what is
    kept is given back first. With ``EFCN_KEEP_MEMORY=off`` in the environment nothing is kept.

    Example:
        >>> import efcn_sparse as es
        >>> es.empty_cache()
    """
    if extension_status().available:
        torch.ops.efcn_sparse_cpu.empty_cache()
