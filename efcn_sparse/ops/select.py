"""Which backend runs an operation, and why."""

from __future__ import annotations

import functools

import torch

from efcn_sparse.ops.backends import BACKENDS


@functools.cache
def resolve(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The name of the backend that runs; ``"auto"`` takes the first that can.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend that was named cannot run there: it never falls back silently.
    """
    if backend == "auto":
        return next(name for name in BACKENDS if _volunteers(name, device_type, dtype))
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    reason = BACKENDS[backend].why_not(device_type, dtype)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run {dtype} on {device_type}: {reason}")
    return backend


def _volunteers(name: str, device_type: str, dtype: torch.dtype) -> bool:
    candidate = BACKENDS[name]
    return device_type not in getattr(candidate, "ONLY_BY_NAME", ()) and candidate.why_not(device_type, dtype) is None


def reasons(device_type: str, dtype: torch.dtype) -> dict[str, str | None]:
    """Each backend with the reason why it cannot run there, None if it can; best first."""
    return {name: backend.why_not(device_type, dtype) for name, backend in BACKENDS.items()}
