"""The pattern's place in a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from efcn_sparse.pattern import BlockPattern

_PARTS = ("crow_indices", "col_indices", "mask_index", "masks")


def save_pattern(pattern: BlockPattern, destination: dict[str, Any], prefix: str) -> None:
    """Add copies of the pattern's arrays under ``prefix``; arrays without elements are left out.

    Copies, because two layers may share one pattern, and safetensors refuses tensors that share memory.
    """
    for part in _PARTS:
        tensor: Tensor = getattr(pattern, part)
        if tensor.numel() or part == "crow_indices":
            destination[f"{prefix}pattern.{part}"] = tensor.clone()


def read_pattern(state: Mapping[str, Any], prefix: str, like: BlockPattern) -> BlockPattern | None:
    """The pattern that a state dict has under ``prefix`` for a matrix like that of ``like``; None if it has none.

    Raises:
        ValueError, TypeError: the arrays make no pattern of this matrix.
    """
    found = {part: state.get(f"{prefix}pattern.{part}") for part in _PARTS}
    crow, values = found["crow_indices"], state.get(f"{prefix}values")
    if crow is None:
        return None
    col = found["col_indices"] if found["col_indices"] is not None else crow.new_empty(0)
    block_shape = like.block_shape if values is None else tuple(values.shape[1:])
    return BlockPattern.from_bsr(
        crow, col, like.shape, block_shape, mask_index=found["mask_index"], masks=found["masks"]
    )


def load_pattern(pattern: BlockPattern, state: dict[str, Any], prefix: str, missing: list[str]) -> str:
    """Take the pattern's arrays out of ``state``; the reason for a refusal, or an empty string.

    A state dict without a pattern (one made by hand, say) is reported in ``missing``.
    """
    found = None
    try:
        found = read_pattern(state, prefix, pattern)
        incoming = None if found is None else f"{found.fingerprint}; adopt_patterns takes it over"
    except (ValueError, TypeError) as error:
        incoming = f"none that fits {list(pattern.shape)} ({error})"
    for part in _PARTS:
        state.pop(f"{prefix}pattern.{part}", None)
    if incoming is None:
        missing.append(f"{prefix}pattern.crow_indices")
        return ""
    if found == pattern:
        return ""
    name = prefix.rstrip(".") or "SparseLinear"
    return f"{name}: the state dict's pattern must be {pattern.fingerprint}, got {incoming}"
