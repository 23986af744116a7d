"""The least that the kernels ask of Triton's interpreter: a loop whose end is an argument.

No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

import triton
import triton.language as tl


@triton.jit
def count_kernel(counted, steps):
    """Store how many steps there were."""
    number = tl.program_id(0)
    for _ in range(0, steps):
        number += 1
    tl.store(counted, number)
