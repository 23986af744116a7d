"""Which backend runs an operation, and why."""

from __future__ import annotations

import functools

import torch

from efcn_sparse.ops.backends import BACKENDS


@functools.cache
def resolve(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The name of the backend that runs; ``"auto"`` takes the first that can.

    Args:
        device: the operands', which names its GPU: several in one machine may be of different kinds.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend that was named cannot run there: it never falls back silently.
    """
    if backend == "auto":
        return next(name for name in BACKENDS if _volunteers(name, device, dtype))
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    reason = BACKENDS[backend].why_not(device, dtype)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run {dtype} on {device}: {reason}")
    return backend


def _volunteers(name: str, device: torch.device | str, dtype: torch.dtype) -> bool:
    candidate = BACKENDS[name]
    only_by_name = getattr(candidate, "ONLY_BY_NAME", ())
    return torch.device(device).type not in only_by_name and candidate.why_not(device, dtype) is None


def located(device: torch.device | str) -> torch.device:
    """``device``, the current GPU where it names none."""
    found = torch.device(device)
    if str(found) == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return found


def reasons(device: torch.device | str, dtype: torch.dtype) -> dict[str, str | None]:
    """Each backend with the reason why it cannot run there, None if it can; best first."""
    return {name: backend.why_not(device, dtype) for name, backend in BACKENDS.items()}
