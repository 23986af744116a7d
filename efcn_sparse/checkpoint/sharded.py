"""Checkpoints in shards with an index, as Hugging Face has them; at every moment a whole one can be loaded."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from efcn_sparse.checkpoint.atomic import SUFFIX, read_json, replace_atomically, write_text_atomically
from efcn_sparse.checkpoint.fill import adopt, fill, place, targets_in, tensors_of
from efcn_sparse.checkpoint.shard_file import Entry, read_header, write_file

INDEX = "model.safetensors.index.json"
_OURS = re.compile(rf"model-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}\.safetensors({re.escape(SUFFIX)})?")
SHARD_BYTES = 5 << 30


def save_sharded(
    model_or_state: nn.Module | Mapping[str, Tensor], folder: str | Path, *, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Write a model's tensors to ``folder`` as safetensors in shards, with an index in Hugging Face's form.

    Each tensor goes from its storage straight to its file, so memory does not grow with the model. Files have names
    of their own in each save and the index is replaced last: whatever moment the process is killed at, ``folder``
    holds the previous checkpoint or this one, whole. Shards that the index no longer names are then deleted; until
    then both take disk space. A tensor that has several names is stored once.

    Args:
        model_or_state: a module, or tensors by name (an optimizer's, say), on any device.
        folder: made if it is not there; a checkpoint in it is replaced.
        shard_bytes: the most bytes of tensors in a file; a larger tensor has a file of its own.

    Returns:
        The path of the index.

    Law: ``load_sharded(model, folder)`` gives the tensors back bit by bit.

    Raises:
        ValueError: ``shard_bytes`` is no positive integer, or a tensor is on the meta device.
        TypeError: there is something else than plain tensors to save.
        BlockingIOError: another process is saving to ``folder``.
        OSError: the disk is full, say; the previous checkpoint is still there.

    Example:
        >>> import tempfile, torch, efcn_sparse as es
        >>> layer = es.SparseLinear(64, 64, es.BlockPattern.random((64, 64), (8, 8), 0.5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_sharded(layer, folder, shard_bytes=1 << 12)
        ...     sorted(path.suffix for path in Path(folder).iterdir())
        ['.json', '.safetensors', '.safetensors']
    """
    if not isinstance(shard_bytes, int) or isinstance(shard_bytes, bool) or shard_bytes < 1:
        raise ValueError(f"shard_bytes must be an integer of at least 1, got {shard_bytes!r}")
    tensors = tensors_of(model_or_state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored, shared = _without_repeats(tensors)
    shards = _shards(stored, shard_bytes)
    save = secrets.token_hex(4)
    files = [shard_name(save, number, len(shards)) for number in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = Index(weight_map, shared, sum(tensor.nbytes for tensor in stored.values()))
    with _alone_in(folder):
        try:
            for file, shard in zip(files, shards, strict=True):
                replace_atomically(folder / file, functools.partial(write_file, tensors=shard))
            write_text_atomically(folder / INDEX, index.as_json())
        finally:
            remove_unnamed(folder)
    return folder / INDEX


def _without_repeats(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store, and the names that mean one of them again."""
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first_name: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        first = first_name.setdefault(place(tensor), name) if tensor.numel() else name
        if first == name:
            stored[name] = tensor
        else:
            shared[name] = first
    return stored, shared


def _shards(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """The tensors in their order, cut so that no part but a single tensor holds more than ``most`` bytes."""
    shards: list[dict[str, Tensor]] = []
    room = 0
    for name, tensor in tensors.items():
        if not shards or tensor.nbytes > room:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the kernel's lock on ``folder``, which ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"folder must have one writer at a time, got {folder} in use") from None
        yield
    finally:
        os.close(descriptor)


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


# -- the index -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """What the index says.

    Attributes:
        weight_map: the file of each tensor.
        shared: names under which a tensor of ``weight_map`` appears again, with the name that it is stored under.
        total_size: bytes of all stored tensors.
    """

    weight_map: dict[str, str]
    shared: dict[str, str]
    total_size: int

    @property
    def files(self) -> list[str]:
        """The shards, sorted."""
        return sorted(set(self.weight_map.values()))

    def as_json(self) -> str:
        metadata: dict[str, object] = {"total_size": self.total_size}
        if self.shared:
            metadata["shared"] = self.shared
        return json.dumps({"metadata": metadata, "weight_map": self.weight_map}, indent=2) + "\n"


def shard_name(save: str, number: int, total: int) -> str:
    """The file of one shard; ``save`` is new for each save, so that none overwrites what an index still names."""
    return f"model-{save}-{number:05d}-of-{total:05d}.safetensors"


def read_index(folder: Path) -> Index:
    """The index of the checkpoint in ``folder``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold {INDEX}, got {folder} without one")
    told = read_json(path)
    try:
        metadata = told.get("metadata") or {}
        index = Index(
            dict(told["weight_map"]), dict(metadata.get("shared") or {}), int(metadata.get("total_size") or 0)
        )
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise ValueError(f"{path} must be the index of a checkpoint in shards, got {error!r} from it") from error
    for file in index.weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{path} must name files of its own folder, got {file!r}")
    for name, stored in index.shared.items():
        if not isinstance(stored, str) or stored not in index.weight_map or name in index.weight_map:
            raise ValueError(f"{path} must name each shared tensor's stored one, got {name!r} for {stored!r}")
    return index


def remove_unnamed(folder: Path) -> None:
    """Delete the shards of earlier and unfinished saves: those that the index of ``folder`` does not name.

    Files that :func:`shard_name` did not name stay.
    """
    try:
        named = set(read_index(folder).files)
    except FileNotFoundError:
        named = set()
    except ValueError:
        return
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in named:
            path.unlink()
