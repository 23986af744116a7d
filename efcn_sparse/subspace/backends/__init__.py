"""One module for each backend, best first, with ``NAME``, ``why_not`` and ``ONLY_BY_NAME`` as in ``ops.backends``, and

- ``squares(values, plan)``: float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖² of the values;
- ``project(values, plan, tie)``: off-local elements ← 0, with ``tie`` also local elements ← mean of their copies.

``values`` is contiguous ``[nnz_blocks, block_rows, block_cols]`` without gradient.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from efcn_sparse.ops.select import choose
from efcn_sparse.subspace.backends import cpu, reference, triton

BACKENDS = {backend.NAME: backend for backend in (cpu, triton, reference)}


@functools.cache
def resolve(backend: str, device: torch.device | str, dtype: torch.dtype) -> ModuleType:
    """The backend that runs, chosen as for the two operations."""
    return BACKENDS[choose(BACKENDS, backend, device, dtype)]
