"""Whether an embedded copy computes what the model does, up to rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.copying import copy_of
from efcn_sparse.embedding.example_run import Example, run

# Largest difference between two outputs, as a share of the largest output.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_TF32_TOLERANCE = 1e-2
_ROUNDINGS, _MOST = 10, 0.1  # how often the model's own rounding error a deep copy's may be, and how large at most


def check_same_output(model: nn.Module, example: Example, expected: Any, got: Any) -> None:
    """Raise ``ValueError`` unless two outputs, tensors however nested, are equal up to rounding.

    Where they are not, the model is run in fp64: a copy may be as far from that as the model itself is, and some.

    Args:
        model: what computed ``expected`` on ``example``.
    """
    pairs = list(zip(_tensors(expected), _tensors(got), strict=False))
    if not pairs or len(pairs) != len(list(_tensors(expected))):
        raise ValueError(f"embed compares outputs, so the model must return tensors, got {type(expected).__name__}")
    exact: list[Tensor] | None = None
    for number, (before, after) in enumerate(pairs):
        if before.shape != after.shape or before.dtype != after.dtype:
            raise ValueError(
                f"the embedded copy must return {list(before.shape)} of {before.dtype} on the example, "
                f"got {list(after.shape)} of {after.dtype}"
            )
        if not before.is_floating_point() or not before.numel():
            continue
        tolerance = _TOLERANCE.get(before.dtype, 1e-4)
        if before.is_cuda and before.dtype == torch.float32:
            tolerance = max(tolerance, _TF32_TOLERANCE)
        worst = _difference(after, before)
        if not worst <= tolerance:
            exact = _in_double(model, example) if exact is None else exact
            if number < len(exact) and exact[number].shape == before.shape:
                allowed = min(_MOST, _ROUNDINGS * _difference(before, exact[number]))
                if _difference(after, exact[number]) <= allowed:
                    continue
            raise ValueError(
                f"the embedded copy must compute what the model does on the example, to {tolerance:g} of the largest "
                f"output, got a difference of {worst:.3g}; is a convolution's weight used outside its own call?"
            )


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference as a share of the largest of ``other``; infinite where other numbers are not finite."""
    finite = other.isfinite()
    if not torch.allclose(one[~finite].double(), other[~finite].double(), rtol=0, atol=0, equal_nan=True):
        return float("inf")
    one, other = one[finite].double(), other[finite].double()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30)) if other.numel() else 0.0


def _in_double(model: nn.Module, example: Example) -> list[Tensor]:
    """What the model returns in fp64; nothing where it cannot."""
    try:
        return list(_tensors(run(copy_of(model, {}).double(), example.to(torch.float64), False).output))
    except Exception:
        return []


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from _tensors([getattr(output, field.name) for field in dataclasses.fields(output)])
