"""Bad input to the operations, refused with the argument's name before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor

from efcn_sparse.pattern import BlockPattern


def check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def check_features(name: str, tensor: Tensor, features: int) -> None:
    if tensor.dim() == 0 or tensor.shape[-1] != features:
        raise ValueError(f"{name} must be [..., {features}], got {list(tensor.shape)}")


def check_alike(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """One device for both; one dtype too, unless autocast will see to that."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(tensor.device.type):
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}")


def check_pattern(pattern: BlockPattern, name: str, tensor: Tensor) -> None:
    if not isinstance(pattern, BlockPattern):
        raise TypeError(f"pattern must be a BlockPattern, got {type(pattern).__name__}")
    if pattern.device != tensor.device and tensor.device.type != "meta":
        raise ValueError(
            f"pattern must be on the device of {name}, {tensor.device}, got {pattern.device}; use pattern.to(...)"
        )
