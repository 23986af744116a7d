"""The index arrays of a pattern, as the kernels receive them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Structure(NamedTuple):
    """What ``BlockPattern.structure`` lists, by name; an operator's ``Tensor[] structure`` holds these in order."""

    crow_indices: Tensor
    col_indices: Tensor
    ccol_indices: Tensor
    row_indices: Tensor
    block_order: Tensor
    mask_index: Tensor
    masks: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Structure:
        return cls(*tensors)
