"""Which bytes a program on the meta device would hold, at each moment, and how much work it would do."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_FACTORIES = ("empty", "zeros", "ones", "full", "rand", "new_")


class LiveMemory(TorchDispatchMode):
    """Follows every storage on the meta device from the operation that makes it until nothing refers to it.

    Attributes:
        held: bytes now.
        peak: the most of ``held`` so far.
        flops: of the matrix products and convolutions so far.
        moved: bytes that operations read and wrote so far, each operand counted once per operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = self.flops = self.moved = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def follow(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, if it is not counted yet."""
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.held -= size

        self._known[key] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)

    def work(self, flops: int, moved: int) -> None:
        """Count what an operation does that stands in for another."""
        self.flops += flops
        self.moved += moved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        for tensor in outputs:
            self.follow(tensor)
        if not _is_view(func) and not func._overloadpacket.__name__.startswith(_FACTORIES):
            inputs = _tensors([args, kwargs])
            self.moved += sum(tensor.nbytes for tensor in [*inputs, *outputs] if tensor.is_meta)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
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
