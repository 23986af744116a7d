"""One module for each backend, best first; which one runs is decided as for the two operations of ``ops``.

A backend is a module with

- ``NAME``, and ``why_not(device_type, dtype) -> str | None``: the reason why it cannot run there, None if it can;
- ``ONLY_BY_NAME``, if it likes: device types where it can run but ``"auto"`` passes it over;
- ``squares(values, plan)``: float64 ``[3]``: ‖tied‖², ‖untied‖², ‖off-local‖² of the values;
- ``project(values, plan, tie)``: off-local elements ← 0, with ``tie`` also local elements ← mean of their copies.

``values`` is contiguous ``[nnz_blocks, block_rows, block_cols]`` without gradient.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from efcn_sparse.subspace.backends import cpu, reference, triton

BACKENDS = {backend.NAME: backend for backend in (cpu, triton, reference)}


@functools.cache
def resolve(backend: str, device_type: str, dtype: torch.dtype) -> ModuleType:
    """The backend that runs; ``"auto"`` takes the first that can."""
    if backend == "auto":
        return next(candidate for candidate in BACKENDS.values() if _volunteers(candidate, device_type, dtype))
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    reason = BACKENDS[backend].why_not(device_type, dtype)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run {dtype} on {device_type}: {reason}")
    return BACKENDS[backend]


def _volunteers(candidate: ModuleType, device_type: str, dtype: torch.dtype) -> bool:
    return device_type not in getattr(candidate, "ONLY_BY_NAME", ()) and candidate.why_not(device_type, dtype) is None
