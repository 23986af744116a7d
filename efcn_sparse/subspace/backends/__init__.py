"""One module for each backend, best first; which one runs is decided as for the two operations of ``ops``.

A backend is a module with

- ``NAME``, and ``why_not(device, dtype) -> str | None``: the reason why it cannot run there, None if it can;
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
def resolve(backend: str, device: torch.device | str, dtype: torch.dtype) -> ModuleType:
    """The backend that runs; ``"auto"`` takes the first that can."""
    if backend == "auto":
        return next(candidate for candidate in BACKENDS.values() if _volunteers(candidate, device, dtype))
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    reason = BACKENDS[backend].why_not(device, dtype)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run {dtype} on {device}: {reason}")
    return BACKENDS[backend]


def _volunteers(candidate: ModuleType, device: torch.device | str, dtype: torch.dtype) -> bool:
    only_by_name = getattr(candidate, "ONLY_BY_NAME", ())
    return torch.device(device).type not in only_by_name and candidate.why_not(device, dtype) is None
