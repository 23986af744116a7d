"""The pattern's index arrays as buffers of a layer, so that whatever saves, moves or fills modules reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efcn_sparse.pattern import BlockPattern

PARTS = ("crow_indices", "col_indices", "mask_index", "masks")
Seen = list[tuple[str, Tensor | None, int]]  # each buffer, and its version counter when it was last known to be right


def index_keys(prefix: str) -> list[str]:
    """The names of the arrays in a state dict, and those that they had in version 0.1."""
    return [f"{prefix}{part}" for part in PARTS] + [f"{prefix}pattern.{part}" for part in PARTS]


class Lineage:
    """What a layer and its copies have in common: how often blocks of one of them moved, and where they are then."""

    def __init__(self) -> None:
        self.moves, self.latest = 0, ""

    def __deepcopy__(self, memo: Any) -> Lineage:
        return self

    def __reduce__(self) -> tuple[type[Lineage], tuple[()]]:
        return Lineage, ()


# -- buffers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def write_buffers(layer: nn.Module, pattern: BlockPattern) -> Seen:
    """Make the arrays of ``pattern`` buffers of ``layer``, in the memory that these have if it fits.

    They are copies: layers may share a pattern, and a pattern never changes. Without masks there is no array of them.
    """
    for part in PARTS:
        array, own = getattr(pattern.structure, part), layer._buffers.get(part)  # itself: a property would copy it
        if part in ("mask_index", "masks") and pattern.structure.masks.shape[0] == 0:
            layer._buffers.pop(part, None)
        elif own is None:
            layer.register_buffer(part, array.clone())
        elif _is_like(own, array):
            own.copy_(array)
        else:
            layer._buffers[part] = array.clone()
    return seen_now(layer)


def stored_pattern(layer: Any) -> BlockPattern:
    """The pattern that a :class:`SparseLinear` computes with, whatever was written over its arrays."""
    return layer._pattern


def seen_now(layer: nn.Module) -> Seen:
    """The buffers as they are; those made in inference mode have no counter, which is -1 here."""
    own = {part: layer._buffers.get(part) for part in PARTS}
    return [
        (part, tensor, -1 if tensor.is_inference() else tensor._version)
        for part, tensor in own.items()
        if tensor is not None
    ]


def were_broadcast(layer: nn.Module, seen: Seen) -> bool:
    """Whether ``DistributedDataParallel`` may have written into the buffers, as it does before each forward pass."""
    inside = getattr(DistributedDataParallel, "_active_ddp_module", None) is not None
    return inside and all(layer._buffers.get(part) is tensor for part, tensor, _ in seen)


def agree(layer: nn.Module, pattern: BlockPattern) -> bool:
    """Whether the buffers hold the arrays of ``pattern``; true where they have no numbers to read.

    Under :func:`torch.func.vmap` each of the stacked ones must.
    """
    masked = pattern.masks.shape[0] > 0
    for part in PARTS:
        own = layer._buffers.get(part)
        array = getattr(pattern.structure, part)
        if own is None:
            if masked or part in ("crow_indices", "col_indices"):
                return False
            continue
        if own.is_meta or type(own) is not Tensor:  # a fake tensor, or one that is divided among processes
            continue
        members = _members(own)
        if members.shape[1:] != array.shape or not bool((members == array.to(members.device)).all()):
            return False
    return True


def is_stacked(layer: nn.Module) -> bool:
    """Whether the buffers are those of several modules at once, under :func:`torch.func.vmap`."""
    return any(
        torch._C._functorch.is_functorch_wrapped_tensor(own)
        for own in map(layer._buffers.get, PARTS)
        if own is not None
    )


def written_pattern(layer: nn.Module, like: BlockPattern) -> tuple[BlockPattern | None, str]:
    """The pattern that the buffers hold, if they do; and how it is called in messages."""
    if is_stacked(layer):
        return None, "several different ones"
    try:
        written = read_pattern(layer._buffers, "", like)
    except (ValueError, TypeError) as error:
        return None, f"none that fits ({error})"
    return written, "none" if written is None else written.fingerprint


def _members(tensor: Tensor) -> Tensor:
    """``[n, *tensor.shape]``: what :func:`torch.func.vmap` has stacked; n is 1 outside it."""
    functorch, dims = torch._C._functorch, []
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            dims.append(functorch.maybe_get_bdim(tensor))
        tensor = functorch.get_unwrapped(tensor)
    for moved, dim in enumerate(reversed(dims)):
        tensor = tensor.movedim(dim + moved, 0)
    return tensor.flatten(0, len(dims) - 1) if dims else tensor.unsqueeze(0)


def _is_like(own: Tensor, array: Tensor) -> bool:
    kind = (own.shape, own.dtype, own.device) == (array.shape, array.dtype, array.device)
    return kind and type(own) is Tensor and not own.is_inference()


# -- state dicts -----------------------------------------------------------------------------------------------------


def read_pattern(state: Mapping[str, Any], prefix: str, like: BlockPattern) -> BlockPattern | None:
    """The pattern that a state dict has under ``prefix`` for a matrix like that of ``like``; None if it has none.

    Raises:
        ValueError, TypeError: the arrays make no pattern of this matrix.
    """
    found = {part: state.get(f"{prefix}{part}", state.get(f"{prefix}pattern.{part}")) for part in PARTS}
    crow, values = found["crow_indices"], state.get(f"{prefix}values")
    if crow is None:
        return None
    for part, tensor in found.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{part} must be a tensor, got {type(tensor).__name__}")
    col = found["col_indices"] if found["col_indices"] is not None else crow.new_empty(0)
    block_shape = tuple(values.shape[1:]) if isinstance(values, Tensor) else like.block_shape
    index = None if found["mask_index"] is None else _whole(found["mask_index"])
    masks = None if found["masks"] is None else _whole(found["masks"], torch.uint8)
    return BlockPattern.from_bsr(_whole(crow), _whole(col), like.shape, block_shape, mask_index=index, masks=masks)


def alike_pattern(like: BlockPattern, state: Mapping[str, Any], prefix: str) -> BlockPattern | None:
    """The pattern that a state dict has together with values, if these have the shape of those of ``like``."""
    values = state.get(f"{prefix}values")
    if not isinstance(values, Tensor) or tuple(values.shape) != like.values_shape:
        return None
    try:
        found = read_pattern(state, prefix, like)
    except (ValueError, TypeError):
        return None
    return found if found is not None and found.values_shape == like.values_shape else None


def _whole(array: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """Integers that became floating-point numbers, as in the mean of several state dicts, as integers again."""
    if not array.is_floating_point():
        return array
    whole = array.double().round()
    if bool(((array.double() - whole).abs() > 8 * torch.finfo(array.dtype).eps * whole.abs().clamp(min=1)).any()):
        raise ValueError(
            "index arrays were averaged, as by a mean of state dicts; average the entries with is_floating_point() only"
        )
    return whole.to(dtype)


CUT_OFF = (
    "index arrays that an average has cut off to integers; average only what is_floating_point(), as AveragedModel "
    "does with use_buffers=False, or copy these arrays from the model that was averaged"
)


def were_cut_off(state: Mapping[str, Any], prefix: str, pattern: BlockPattern) -> bool:
    """Whether the arrays look like an average of ``pattern``'s own that became integers again.

    Of 0.9 i + 0.1 i, in floating point, i - 1 may be left: for some numbers, and for those everywhere. Numbers of
    thousands may lose 1 again in later steps.
    """
    before, after = [], []
    for part in ("crow_indices", "col_indices"):
        array, own = getattr(pattern.structure, part), state.get(f"{prefix}{part}")
        if type(own) is not Tensor or own.is_meta or own.shape != array.shape or own.is_floating_point():
            return False
        before.append(array.cpu())
        after.append(own.cpu())
    was = torch.cat(before)
    lost = was - torch.cat(after)
    if not bool(lost.any()) or bool(((lost < 0) | (lost > 1 + was // 512)).any()):
        return False
    return torch.stack([was, lost]).unique(dim=1).shape[1] == was.unique().numel()


def take_pattern(pattern: BlockPattern, state: dict[str, Any], prefix: str, missing: list[str]) -> str:
    """Take the pattern's arrays out of ``state``; the reason for a refusal, or an empty string.

    A state dict without a pattern (one made by hand, say) is reported in ``missing``.
    """
    found = None
    try:
        found = read_pattern(state, prefix, pattern)
        incoming = None if found is None else _difference(pattern, found)
    except (ValueError, TypeError) as error:
        incoming = f"none that fits {list(pattern.shape)} ({error})"
    if were_cut_off(state, prefix, pattern):
        incoming = CUT_OFF
    for key in index_keys(prefix):
        state.pop(key, None)
    if incoming is None:
        parts = PARTS if pattern.masks.shape[0] else PARTS[:2]
        missing += [f"{prefix}{part}" for part in parts]
        return ""
    if found == pattern:
        return ""
    name = prefix.rstrip(".") or "SparseLinear"
    return f"{name}: the state dict's pattern must be {pattern.fingerprint}, got {incoming}"


def _difference(pattern: BlockPattern, found: BlockPattern) -> str:
    """What another pattern is, and what can be done about it."""
    if found.block_shape != pattern.block_shape:
        return f"one in blocks of {found.block_shape} for {pattern.block_shape}"
    blocks = "" if found.nnz_blocks == pattern.nnz_blocks else f", {found.nnz_blocks} blocks for {pattern.nnz_blocks}"
    return f"{found.fingerprint}{blocks}; adopt_patterns takes it over"
