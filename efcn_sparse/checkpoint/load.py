"""Reading a checkpoint in shards into the storage of a model that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from efcn_sparse.checkpoint.fill import adopt, fill, targets_in
from efcn_sparse.checkpoint.index import INDEX, read_index
from efcn_sparse.checkpoint.shard_file import Entry, read_header


def load_sharded(model: nn.Module | Mapping[str, Tensor], folder: str | Path) -> None:
    """Bring ``model`` to the state that :func:`save_sharded` wrote to ``folder``, in place.

    Each tensor goes from its file straight into the storage it has, so memory does not grow, and what refers to the
    storage (an optimizer, a view) stays valid. Everything is checked before the first number changes. Any checkpoint
    in Hugging Face's form can be read; floating-point numbers are converted to the dtype of the model. Convolutions
    embedded with :class:`Grown` take over the places of their blocks; for other layers see :func:`adopt_patterns`.

    Args:
        model: with the tensors, shapes and patterns of the one that was saved; or tensors by name.
        folder: holds ``model.safetensors.index.json``.

    Raises:
        FileNotFoundError: the index or a shard is missing.
        ValueError: a tensor is missing, unexpected or of another shape; a pattern is another one (both fingerprints
            are told); or a file is broken. The model is as it was.
        TypeError: integers would have to become floating-point numbers, or the reverse.

    Example:
        >>> import tempfile, torch
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
    targets = targets_in(model, entries, f"the checkpoint in {folder}")
    adopt(model, entries)
    fill(targets, entries)


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
