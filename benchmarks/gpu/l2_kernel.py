"""A kernel that reads a buffer which fits the L2, over and over: the rate of the L2.

No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

import triton
import triton.language as tl


@triton.jit
def read_kernel(data, out, size, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads STEPS blocks, at places of its own, past the L1."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(STEPS):
        # said aloud, since the compiler cannot see it through the remainder: so each thread loads 16 bytes at a time
        first = tl.multiple_of(((tl.program_id(0) * 37 + step) * BLOCK) % size, BLOCK)
        total += tl.load(data + first + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), total)
