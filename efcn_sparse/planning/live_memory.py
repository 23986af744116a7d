"""Which bytes a program on the meta device would hold, at each moment, and how much work it would do."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from efcn_sparse.planning.work import OperatorWork, StepWork

_MAPPED_BYTES = 32 << 20  # glibc maps allocations from here on anew each time, and gives them back when they are freed
_KEPT_BYTES = 64 << 20  # and of the free memory at the end of its heap it keeps so much
_FACTORIES = ("empty", "zeros", "ones", "full", "rand", "new_")


class LiveMemory(TorchDispatchMode):
    """Follows every storage on the meta device from the operation that makes it until nothing refers to it.

    Attributes:
        held: bytes now.
        peak: the most of ``held`` so far.
        work: of the operations so far; those that stand in for others add theirs themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._in_heap = self._heap_start = self._heap_peak = 0
        self._mapped = 0
        self.work = StepWork()
        self._known: dict[int, weakref.ref[Any]] = {}

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, if it is not counted yet."""
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        in_heap = size if size < _MAPPED_BYTES else 0

        def gone(_: object) -> None:
            del self._known[key]
            self.held -= size
            self._in_heap -= in_heap

        self._known[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)
        self._in_heap += in_heap
        self._heap_peak = max(self._heap_peak, self._in_heap)
        self._mapped += size - in_heap

    def restart(self) -> None:
        """Begin to count anew from what is held now."""
        self.peak, self.work = self.held, StepWork()
        self._heap_start = self._heap_peak = self._in_heap
        self._mapped = 0

    @property
    def fresh(self) -> int:
        """Bytes that the allocator had to take from the system since the restart, though they had been free before."""
        return self._mapped + max(0, self._heap_peak - self._heap_start - _KEPT_BYTES)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        for tensor in outputs:
            self.follow(tensor)
        if not _is_view(func) and not func._overloadpacket.__name__.startswith(_FACTORIES):
            done = self.work.operators.setdefault(func._overloadpacket.__name__, OperatorWork())
            inputs = _tensors([args, kwargs])
            count = flop_registry.get(func._overloadpacket)
            done.calls += 1
            done.flops += 0 if count is None else count(*args, **kwargs, out_val=result)
            done.moved += sum(tensor.nbytes for tensor in [*inputs, *outputs] if tensor.is_meta)
        return result


def _is_view(func: Any) -> bool:
    aliases = [returned.alias_info for returned in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for part in nested:
            yield from _tensors(part)
    elif isinstance(nested, dict):
        yield from _tensors(list(nested.values()))


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors of nested tuples, lists and dictionaries."""
    return list(_tensors(nested))


def meta_copy(tensor: Tensor) -> Tensor:
    """A tensor like this one, strides included, without memory."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
