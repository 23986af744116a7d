"""The tensors of a model, or of a state, that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from efcn_sparse.checkpoint.shard_file import NAME_OF_DTYPE


def tensors_of(model_or_state: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live tensors by name; of a pattern, copies of its index arrays.

    Raises:
        TypeError: it is neither a module nor tensors by name, or a tensor is of a kind that files cannot hold.
        ValueError: a tensor has no memory (the meta device).
    """
    if isinstance(model_or_state, nn.Module):
        model_or_state = model_or_state.state_dict()
    if not isinstance(model_or_state, Mapping):
        raise TypeError(f"model_or_state must be a module or tensors by name, got {type(model_or_state).__name__}")
    tensors = {}
    for name, tensor in model_or_state.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise TypeError(f"model_or_state must have names that are strings, not '__metadata__', got {name!r}")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        tensor = tensor.detach()
        if type(tensor) is not Tensor or tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a plain dense tensor, got {type(tensor).__name__} of {tensor.layout}")
        if tensor.dtype not in NAME_OF_DTYPE:
            raise TypeError(f"{name} must have a dtype that safetensors knows, got {tensor.dtype}")
        if tensor.is_meta:
            raise ValueError(f"{name} must have memory, got a tensor on the meta device; see Module.to_empty")
        tensors[name] = tensor
    return tensors


def place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same numbers at the same place."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
