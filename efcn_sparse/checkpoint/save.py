"""Writing a checkpoint in shards, so that at every moment a whole one can be loaded."""

from __future__ import annotations

import fcntl
import functools
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from efcn_sparse.checkpoint.atomic import replace_atomically, write_text_atomically
from efcn_sparse.checkpoint.index import INDEX, Index, remove_unnamed, shard_name
from efcn_sparse.checkpoint.shard_file import write_file
from efcn_sparse.checkpoint.state import place, tensors_of

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
    with _opened(folder) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"folder must have one writer at a time, got {folder} in use") from None
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
