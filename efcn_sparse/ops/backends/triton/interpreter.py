"""Whether the Triton that is installed can interpret kernels here."""

from __future__ import annotations

import functools

import torch


@functools.cache
def why_not() -> str | None:
    """The reason why it cannot, None if it can: Triton 3.6 counts in a way that NumPy 2.4 forbids."""
    import numpy
    import triton

    from efcn_sparse.ops.backends.triton.probe_kernel import count_kernel

    counted = torch.zeros((), dtype=torch.int32)
    try:
        count_kernel[(1,)](counted, 3)
    except Exception as error:
        first = str(error).partition("\n")[0]
        return f"Triton {triton.__version__} cannot interpret its kernels with NumPy {numpy.__version__}: {first}"
    return None
