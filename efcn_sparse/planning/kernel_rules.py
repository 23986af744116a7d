"""What the CPU kernels decide by size, as far as memory depends on it; a test compares with ``csrc/cpu``."""

from __future__ import annotations

from torch import Tensor

GATHER_SIDE = 16  # blocks at most this wide ...
GATHER_ROWS = 32  # ... and at least this high are gathered a few at a time
DIRECT_RUN = 48  # SpMM reads runs of at least this many columns where they are
CROWDED_BYTES = 1024  # rows a multiple of this apart fall into few cache sets, so SDDMM copies them ...
CROWDED_SIDE = 8  # ... unless blocks are narrower than this


def spmm_copy(x: Tensor, in_side: int, out_side: int) -> int:
    """Bytes that SpMM packs its input ``x`` into; runs are taken to be one block long, which is the most it can be."""
    in_place = x.element_size() >= 4 and in_side >= DIRECT_RUN
    return 0 if in_place or _gathered(in_side, out_side) else x.nbytes


def sddmm_copy(b: Tensor, in_side: int, out_side: int) -> int:
    """Bytes that SDDMM packs its right side ``b`` into."""
    crowded = b.stride(0) * b.element_size() % CROWDED_BYTES == 0 and in_side >= CROWDED_SIDE
    return b.nbytes if not _gathered(in_side, out_side) and (crowded or b.element_size() < 4) else 0


def _gathered(in_side: int, out_side: int) -> bool:
    return in_side <= GATHER_SIDE and out_side >= GATHER_ROWS
