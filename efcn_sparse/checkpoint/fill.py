"""The tensors of a model: those that a checkpoint holds, and how they are filled from a file where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.autocast import weights_were_written
from efcn_sparse.checkpoint.shard_file import NAME_OF_DTYPE, Entry, read_tensor
from efcn_sparse.growth import adopt_patterns
from efcn_sparse.growth.exchange import is_growable
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.state import index_keys, stored_pattern, take_pattern

_MOST_NAMES = 8


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


def targets_in(model: nn.Module | Mapping[str, Tensor], entries: Mapping[str, Entry], told: str) -> dict[str, Tensor]:
    """The tensors of ``model`` that are to be filled from ``entries``, by name, after every check.

    Patterns are compared and not among them; layers whose blocks move take theirs over by :func:`adopt` later. Nothing
    is changed.

    Args:
        told: what holds the entries, for messages.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; or a pattern is another one.
        TypeError: integers would have to become floating-point numbers, or the reverse.
    """
    entries, targets, missing = dict(entries), tensors_of(model), list[str]()
    if isinstance(model, nn.Module):
        _take_patterns(model, entries, targets, missing)
    missing += [name for name in targets if name not in entries]
    unexpected = [name for name in entries if name not in targets]
    if missing or unexpected:
        raise ValueError(
            f"{told} must hold the tensors of the model, "
            f"got missing {_some(missing)} and unexpected {_some(unexpected)}"
        )
    for name, target in targets.items():
        _check_like(name, target, entries[name])
    return targets


def _take_patterns(model: nn.Module, entries: dict[str, Entry], targets: dict[str, Tensor], missing: list[str]) -> None:
    """Compare the pattern of each sparse layer with the checkpoint's, and take both out of what is to be copied."""
    moving = {id(module.linear) for module in model.modules() if is_growable(module) and module.grows}
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, SparseLinear):
            continue
        prefix = f"{name}." if name else ""
        state: dict[str, Any] = _pattern_state(entries, prefix)
        known = set(state)
        refused = take_pattern(stored_pattern(layer), state, prefix, missing)
        if refused and id(layer) not in moving:
            raise ValueError(refused)
        for key in known - set(state):
            del entries[key]
        for key in index_keys(prefix):
            targets.pop(key, None)


def adopt(model: nn.Module | Mapping[str, Tensor], entries: Mapping[str, Entry]) -> None:
    """Bring layers whose blocks move to the places that ``entries`` tell.

    Raises:
        ValueError: a pattern does not fit; nothing has changed then.
    """
    if isinstance(model, nn.Module):
        moving = [name for name, module in model.named_modules() if is_growable(module) and module.grows]
        states = (_pattern_state(entries, f"{name}.linear." if name else "linear.") for name in moving)
        adopt_patterns(model, {key: tensor for state in states for key, tensor in state.items()})


def _pattern_state(entries: Mapping[str, Entry], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict that tells a layer's pattern: its arrays, and the shape of the values."""
    state = {key: read_entry(entries[key]) for key in index_keys(prefix) if key in entries}
    values = entries.get(f"{prefix}values")
    if values is not None:
        state[f"{prefix}values"] = torch.empty(values.shape, device="meta")
    return state


def read_entry(entry: Entry) -> Tensor:
    """The tensor on the CPU; for small ones."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    _read(entry, tensor)
    return tensor


@torch.no_grad()
def fill(targets: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> None:
    """Overwrite each target with the entry of its name, in the order in which they lie on the disk."""
    done = set()
    for name in sorted(targets, key=lambda name: (entries[name].path, entries[name].start)):
        target, entry = targets[name], entries[name]
        if (place(target), entry) in done:
            continue
        done.add((place(target), entry))
        _read(entry, target)
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)
    weights_were_written()


def _read(entry: Entry, target: Tensor) -> None:
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        read_tensor(file, entry.dtype, target)


def _check_like(name: str, target: Tensor, entry: Entry) -> None:
    if tuple(target.shape) != entry.shape:
        raise ValueError(f"{name} must be {list(target.shape)}, got {list(entry.shape)} in the checkpoint")
    if target.dtype != entry.dtype and not (target.is_floating_point() and entry.dtype.is_floating_point):
        raise TypeError(f"{name} must be {target.dtype}, got {entry.dtype} in the checkpoint")


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return str(names) if rest <= 0 else f"{names[:_MOST_NAMES]} and {rest} more"
