"""What was worked out for a pattern, remembered for as long as its index arrays live."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from efcn_sparse.pattern import Structure

T = TypeVar("T")
_REMEMBERED: dict[Hashable, tuple[tuple[StorageWeakRef, ...], dict[Hashable, Any]]] = {}


def remembered(structure: Structure, key: Hashable, make: Callable[[], T]) -> T:
    """``make()`` of the first call with this key for this pattern.

    A pattern is known by the memory of its two index starts, whatever tensor objects autograd or the compiler hand on.
    The weak references keep that memory's name from being given away, so a name that is known is still the pattern's.

    Raises:
        RuntimeError: a CUDA graph is being captured, and there was no call before it.
    """
    storages = structure.crow_indices.untyped_storage(), structure.ccol_indices.untyped_storage()
    name = storages[0]._cdata, storages[1]._cdata
    found = _REMEMBERED.get(name)
    if found is None:
        _forget_the_dead()
        found = _REMEMBERED[name] = tuple(StorageWeakRef(storage) for storage in storages), {}
    known = found[1]
    if key not in known:
        if structure.crow_indices.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a pattern's schedule is worked out at the first call, which cannot be inside a CUDA graph's capture: "
                "run the step once before it"
            )
        known[key] = make()
    return known[key]


def _forget_the_dead() -> None:
    for name in [name for name, (references, _) in _REMEMBERED.items() if any(ref.expired() for ref in references)]:
        del _REMEMBERED[name]
