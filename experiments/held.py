"""How much memory the parts of a training step hold, counted from the tensors themselves."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import torch
from torch import Tensor, nn

from efcn_sparse.available import available_bytes as available_bytes
from efcn_sparse.embedding import EmbeddedConv


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd saves, each storage once, parameters and index arrays left out."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                self.bytes += storage.nbytes()
            return tensor

        super().__init__(note, lambda tensor: tensor)


def parameter_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def structure_bytes(model: nn.Module) -> int:
    """Patterns, once more for the slices of the optimizer, and ties; shared ones once."""
    arrays: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, EmbeddedConv):
            for tensor in module.linear.pattern.structure:
                arrays[tensor.data_ptr()] = 2 * tensor.nbytes
            ties = module.ties
            for tensor in (ties.class_of_block, ties.maps, ties.class_starts, ties.blocks_by_class, ties.counts):
                arrays[tensor.data_ptr()] = tensor.nbytes
    return sum(arrays.values())


def max_rss_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trim() -> None:
    """Give memory that was freed back to the system, where the C library can: what is held later is then in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
