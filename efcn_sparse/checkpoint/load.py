"""Reading a checkpoint in shards into the storage of a model that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efcn_sparse.checkpoint.index import INDEX, read_index
from efcn_sparse.checkpoint.shard_file import Entry, read_header
from efcn_sparse.checkpoint.state import place, tensors_of
from efcn_sparse.checkpoint.stream import read_tensor
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.state import load_pattern

_MOST_NAMES = 8


@torch.no_grad()
def load_sharded(model: nn.Module | Mapping[str, Tensor], folder: str | Path) -> None:
    """Bring ``model`` to the state that :func:`save_sharded` wrote to ``folder``, in place.

    Each tensor goes from its file straight into the storage it has, so memory does not grow, and what refers to the
    storage (an optimiser, a view) stays valid. Everything is checked before the first number changes. Any checkpoint
    in Hugging Face's form can be read; floating-point numbers are converted to the dtype of the model.

    Args:
        model: with the tensors, shapes and patterns of the one that was saved; or tensors by name.
        folder: holds ``model.safetensors.index.json``.

    Raises:
        FileNotFoundError: the index or a shard is missing.
        ValueError: a tensor is missing, unexpected or of another shape; a pattern is another one (both fingerprints
            are told); or a file is broken. The model is as it was.
        TypeError: integers would have to become floating-point numbers, or the reverse.

    Example:
        >>> import tempfile, efcn_sparse as es
        >>> from efcn_sparse.checkpoint import save_sharded
        >>> one, other = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_sharded(one, folder)
        ...     load_sharded(other, folder)
        >>> torch.equal(one.weight, other.weight)
        True
    """
    folder = Path(folder)
    entries = _entries(folder)
    targets = tensors_of(model)
    missing: list[str] = []
    if isinstance(model, nn.Module):
        _take_patterns(model, entries, targets, missing)
    missing += [name for name in targets if name not in entries]
    unexpected = [name for name in entries if name not in targets]
    if missing or unexpected:
        raise ValueError(
            f"the checkpoint in {folder} must hold the tensors of the model, "
            f"got missing {_some(missing)} and unexpected {_some(unexpected)}"
        )
    for name, target in targets.items():
        _check_like(name, target, entries[name])
    _fill(targets, entries)


def _entries(folder: Path) -> dict[str, Entry]:
    """Where each tensor of the checkpoint is, under all its names."""
    index = read_index(folder)
    headers = {}
    for file in index.files:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / INDEX} must name files that are there, got {file} missing")
        headers[file] = read_header(folder / file)
    entries = {}
    for name, file in index.weight_map.items():
        if name not in headers[file]:
            raise ValueError(f"{folder / file} must hold {name!r}, as {INDEX} says, got a file without it")
        entries[name] = headers[file][name]
    return entries | {name: entries[stored] for name, stored in index.shared.items()}


def _take_patterns(model: nn.Module, entries: dict[str, Entry], targets: dict[str, Tensor], missing: list[str]) -> None:
    """Compare the pattern of each sparse layer with the checkpoint's, and take both out of what is to be copied."""
    for name, layer in model.named_modules(remove_duplicate=False):
        if not isinstance(layer, SparseLinear):
            continue
        prefix = f"{name}." if name else ""
        state: dict[str, Any] = {}
        for key in [key for key in entries if key.startswith(f"{prefix}pattern.")]:
            state[key] = _read(entries[key])
        values = entries.get(f"{prefix}values")
        if values is not None:
            state[f"{prefix}values"] = torch.empty(values.shape, device="meta")
        known = set(state)
        refused = load_pattern(layer.pattern, state, prefix, missing)
        if refused:
            raise ValueError(refused)
        for key in known - set(state):
            del entries[key]
        for key in [key for key in targets if key.startswith(f"{prefix}pattern.")]:
            del targets[key]


def _read(entry: Entry) -> Tensor:
    tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        read_tensor(file, entry.dtype, tensor)
    return tensor


def _check_like(name: str, target: Tensor, entry: Entry) -> None:
    if tuple(target.shape) != entry.shape:
        raise ValueError(f"{name} must be {list(target.shape)}, got {list(entry.shape)} in the checkpoint")
    if target.dtype != entry.dtype and not (target.is_floating_point() and entry.dtype.is_floating_point):
        raise TypeError(f"{name} must be {target.dtype}, got {entry.dtype} in the checkpoint")


def _fill(targets: Mapping[str, Tensor], entries: Mapping[str, Entry]) -> None:
    done = set()
    for name in sorted(targets, key=lambda name: (entries[name].path, entries[name].start)):
        target, entry = targets[name], entries[name]
        if (place(target), entry) in done:
            continue
        done.add((place(target), entry))
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.start)
            read_tensor(file, entry.dtype, target)
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)


def _some(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return str(names) if rest <= 0 else f"{names[:_MOST_NAMES]} and {rest} more"
