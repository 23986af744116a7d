"""The kernel of untied weights: what can be asked of it, and the nearest tied one, the mean over copies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efcn_sparse.embedding.ties import Ties


@dataclass(frozen=True)
class KernelFacts:
    """What models ask a convolution's ``weight``, where there is no kernel any more: everything but its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def mean_kernel(values: Tensor, ties: Ties, unread: Tensor | None) -> Tensor:
    """Each kernel entry as the mean over its stored copies: the orthogonal projection onto tied weights.

    Sums are fp64, of differences to one of the copies, so that equal copies give back exactly their number.

    Args:
        values: ``[nnz_blocks, block_rows, block_cols]``.
        ties: of the layer that ``values`` belong to.
        unread: the kernel entries without a copy, in order; None where there are none.

    Returns:
        ``ties.kernel_shape``, in the dtype of ``values``.
    """
    entries = ties.counts.numel()
    tied_classes = (ties.maps >= 0).flatten(1).any(1).nonzero().squeeze(1)
    starts, sizes = ties.class_starts[:-1][tied_classes].to(torch.int64), ties.class_starts.diff()[tied_classes]
    maps = ties.maps[tied_classes].to(torch.int64)
    tied = maps >= 0
    at = maps[tied]

    first = values[ties.blocks_by_class[starts].to(torch.int64)]
    one_copy = torch.zeros(entries, dtype=values.dtype, device=values.device)
    one_copy.scatter_reduce_(0, at, first[tied], "amax", include_self=False)  # any copy will do, the same every run
    reference = torch.zeros(maps.shape, dtype=torch.float64, device=values.device)
    reference[tied] = one_copy[at].to(torch.float64)

    differences = torch.zeros_like(reference)
    for k in range(int(sizes.max()) if sizes.numel() else 0):  # the k-th block of every class at once: no collisions
        has = (sizes > k).nonzero().squeeze(1)
        blocks = ties.blocks_by_class[starts[has] + k].to(torch.int64)
        differences[has] += values[blocks].to(torch.float64) - reference[has]
    total = torch.zeros(entries, dtype=torch.float64, device=values.device)
    total.index_put_((at,), differences[tied], accumulate=True)
    kernel = (one_copy.to(torch.float64) + total / ties.counts.clamp(min=1)).to(values.dtype)
    if unread is not None:
        kernel[ties.counts == 0] = unread.to(values.dtype)
    return kernel.view(ties.kernel_shape)


def mean_bias(bias: Tensor, channels: int) -> Tensor:
    """Each channel's bias as the mean over positions, exact where all are equal.

    Args:
        bias: ``[positions * channels]``.
    """
    by_position = bias.view(-1, channels).to(torch.float64)
    return (by_position[0] + (by_position - by_position[0]).mean(0)).to(bias.dtype)
