"""What the CPU kernels copy for themselves, by the constants that the compiled extension decides by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efcn_sparse.extension import compiled, extension_status


def spmm_copy(x: Tensor, in_side: int, out_side: int) -> int:
    """Bytes that SpMM packs its input ``x`` into; runs are taken to be one block long, which is the most it can be."""
    rules = _rules()
    if rules is None:
        return x.nbytes
    if x.element_size() >= 4 and min(in_side, out_side) < rules.COLUMNS_SIDE:
        return min(x.nbytes, rules.COLUMNS_BYTES * torch.get_num_threads())  # a few rows at a time
    in_place = x.element_size() >= 4 and in_side >= rules.DIRECT_RUN
    return 0 if in_place or _gathered(rules, in_side, out_side) else x.nbytes


def sddmm_copy(b: Tensor, in_side: int, out_side: int, *, adds: bool) -> int:
    """Bytes that SDDMM packs its right side ``b`` into; at most, where its sums are not added to what is there."""
    rules = _rules()
    if rules is None:
        return b.nbytes
    crowded = b.stride(0) * b.element_size() % rules.CROWDED_BYTES == 0 and in_side >= rules.CROWDED_SIDE
    if _gathered(rules, in_side, out_side) or not (crowded or b.element_size() < 4):
        return 0
    if adds or b.element_size() < 4:
        return b.nbytes
    parts = max(1, (b.nbytes + rules.AT_ONCE_BYTES // 2) // rules.AT_ONCE_BYTES)
    rows = max(-(-len(b) // (parts * rules.BATCH_CHUNK)) * rules.BATCH_CHUNK, rules.AT_ONCE_ROWS)
    return b.nbytes if rows >= len(b) else b[:rows].nbytes


def _rules() -> Any:
    """The extension; None without it, where the reference backend copies its operands into tiles."""
    return compiled() if extension_status().available else None


def _gathered(rules: Any, in_side: int, out_side: int) -> bool:
    return in_side <= rules.GATHER_SIDE and out_side >= rules.GATHER_ROWS
