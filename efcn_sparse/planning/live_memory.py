"""Which bytes a program on the meta device would hold, at each moment, and how many FLOPs it would do."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Follows every storage on the meta device from the operation that makes it until nothing refers to it.

    Attributes:
        held: bytes now.
        peak: the most of ``held`` so far.
        flops: of matrix products and convolutions so far; modules that stand in for others add theirs themselves.
    """

    counts_memory = True  # layers of ours may allocate as they do when nothing looks on

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = self.flops = 0
        from torch.utils.flop_counter import flop_registry  # imports Triton, which takes 0.4 s

        self._formulas = flop_registry
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

    def restart(self) -> None:
        """Begin to count anew from what is held now."""
        self.peak, self.flops = self.held, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self.follow(tensor)
        count = self._formulas.get(func._overloadpacket)
        self.flops += 0 if count is None else count(*args, **kwargs, out_val=result)
        return result


def tensors_in(nested: Any) -> list[Tensor]:
    """The tensors of nested tuples, lists and dictionaries."""
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


def meta_copy(tensor: Tensor) -> Tensor:
    """A tensor without memory in the place of ``tensor``, strides included."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
