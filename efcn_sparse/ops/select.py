"""Which backend runs an operation, and why."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from types import ModuleType

import torch

from efcn_sparse.extension import extension_is_off
from efcn_sparse.ops.backends import BACKENDS, reference

_KERNELS = {"cpu": "cpu", "cuda": "triton"}  # the backend that one expects on such a device


@functools.cache
def resolve(backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The name of the backend of the two operations that runs, as :func:`choose` has it.

    Warns where there are kernels for such a device, and ``"auto"`` must do without.
    """
    name = choose(BACKENDS, backend, device, dtype)
    if backend == "auto" and name == reference.NAME and torch.device(device).type in _KERNELS:
        _warn_of_slow(torch.device(device).type, dtype)
    return name


@functools.cache
def _warn_of_slow(kind: str, dtype: torch.dtype) -> None:
    if kind == "cpu" and extension_is_off():
        return
    reason = BACKENDS[_KERNELS[kind]].why_not(kind, dtype)
    silence = " (EFCN_EXTENSION=off says that this is meant)" if kind == "cpu" else ""
    warnings.warn(
        f"efcn_sparse runs on plain torch for {kind} tensors, which is several times slower: {reason}{silence}"
    )


def choose(backends: Mapping[str, ModuleType], backend: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """The name of the one of ``backends`` that runs; ``"auto"`` takes the first that can.

    Args:
        backends: modules, best first, with ``why_not`` and ``ONLY_BY_NAME`` as ``ops.backends`` describes them.
        device: the operands', which names its GPU: several in one machine may be of different kinds.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend that was named cannot run there: it never falls back silently.
    """
    if backend == "auto":
        kind = torch.device(device).type
        volunteers = (name for name, one in backends.items() if kind not in getattr(one, "ONLY_BY_NAME", ()))
        return next(name for name in volunteers if backends[name].why_not(device, dtype) is None)
    if backend not in backends:
        raise ValueError(f"backend must be 'auto' or one of {sorted(backends)}, got {backend!r}")
    reason = backends[backend].why_not(device, dtype)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run {dtype} on {device}: {reason}")
    return backend


def located(device: torch.device | str) -> torch.device:
    """``device``, the current GPU where it names none."""
    found = torch.device(device)
    if str(found) == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return found


def reasons(device: torch.device | str, dtype: torch.dtype) -> dict[str, str | None]:
    """Each backend with the reason why it cannot run there, None if it can; best first."""
    return {name: backend.why_not(device, dtype) for name, backend in BACKENDS.items()}
