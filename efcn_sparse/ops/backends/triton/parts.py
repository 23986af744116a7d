"""Tiles of sums, stored part after part: the addresses of a large one do not fit the registers all at once.

No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def parts_of(rows, cols):
    """How many parts side by side a tile is stored in: 1 or 2."""
    return 2 if rows * cols > 8192 else 1


@triton.constexpr_function
def parts_of_blocks(rows, cols, height, reads):
    """The same for blocks, up to 8: no part has rows of two of them, if that is enough.

    Args:
        height: rows of a block.
        reads: whether more is read for each sum: a mask, or what it is added to.
    """
    least = 8 if reads and rows * cols > 16384 else parts_of(rows, cols)
    return next((parts for parts in (1, 2, 4, 8) if parts >= least and height % (cols // parts) == 0), least)


@triton.jit
def cut(tile, ROWS: tl.constexpr, COLS: tl.constexpr, PARTS: tl.constexpr):
    """The tile's parts from left to right, a tuple."""
    if PARTS == 1:
        return (tile,)
    else:
        left, right = tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1)))
        if PARTS == 2:
            return left, right
        else:
            return cut(left, ROWS, COLS // 2, PARTS // 2) + cut(right, ROWS, COLS // 2, PARTS // 2)
