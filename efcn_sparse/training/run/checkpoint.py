"""Checkpoints: a model and its optimizer at the end of an epoch, as one safetensors file."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.checkpoint.atomic import parse_json, replace_atomically
from efcn_sparse.checkpoint.fill import adopt, fill, read_entry, targets_in, tensors_of
from efcn_sparse.checkpoint.shard_file import Entry, read_header, write_file
from efcn_sparse.training.optim.optimizer_state import (
    check_states,
    live_states,
    make_room,
    plain_state,
    restore_plain_state,
)

CHECKPOINTS = "checkpoints"  # the folder
_OPTIMIZER = "optimizer/"  # no module name holds a slash
_PLAIN = f"{_OPTIMIZER}plain"  # JSON, where an optimizer keeps more than tensors
_OLDER = "optimiser/"  # as version 0.1.0 spelt it
_VALUES = ".linear.values"  # of an embedded convolution
_PLACE = re.compile(rf"{_OPTIMIZER}(0|[1-9]\d{{0,8}})/([^/]+)", re.ASCII)
_NAME = re.compile(r"(?P<stage>.+)-e(?P<epoch>0|[1-9]\d{0,8})\.safetensors", re.ASCII)


def checkpoint_path(run_dir: str | Path, stage: str, epoch: int) -> Path:
    """Where the checkpoint of a stage at an epoch lies: ``<run_dir>/checkpoints/<stage>-e<epoch>.safetensors``."""
    return Path(run_dir) / CHECKPOINTS / f"{stage}-e{epoch}.safetensors"


def epochs_on_disk(run_dir: str | Path) -> dict[str, list[int]]:
    """The stages that have checkpoints, each with its epochs, increasing."""
    found: dict[str, list[int]] = {}
    for path in (Path(run_dir) / CHECKPOINTS).glob("*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(match["stage"], []).append(int(match["epoch"]))
    return {stage: sorted(epochs) for stage, epochs in found.items()}


def save_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Write ``model``'s state dict, and the optimizer's tensors beside it, atomically and from where they are.

    Memory grows by a piece of 16 MiB and the index arrays of patterns, whatever the size of the model. A fused
    optimizer's file is that of the unfused one, byte for byte.

    Raises:
        OSError: the disk is full, say; an earlier checkpoint of that name is as it was.
    """
    tensors: dict[str, Tensor] = {**tensors_of(model)}
    for place, state in live_states(model, optimizer).items() if optimizer else ():
        tensors |= {f"{_OPTIMIZER}{place}/{name}": tensor for name, tensor in state.items()}
    plain = plain_state(model, optimizer) if optimizer else None
    if plain:
        tensors[_PLAIN] = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
    # the order of the library's own files, in which every number is aligned
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    replace_atomically(path, functools.partial(write_file, tensors=ordered))


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Bring ``model``, and the optimizer if given, to the state that ``path`` holds, in the storage they have.

    Every check comes before the first change; then numbers go from the file to their places, 16 MiB at a time.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or of another model; the message names the file.
    """
    entries = _entries(path)
    of_model = {name: entry for name, entry in entries.items() if not name.startswith(_OPTIMIZER)}
    try:
        states, targets = _states(entries), dict[str, Tensor]()
        targets |= targets_in(model, of_model, "it")
        if optimizer is not None:
            check_states(model, optimizer, states)
        adopt(model, of_model)
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} must hold the state of this model: {error}") from None
    room = {} if optimizer is None else make_room(model, optimizer, states)
    for place, state in room.items():
        targets |= {f"{_OPTIMIZER}{place}/{key}": tensor for key, tensor in state.items()}
    fill(targets, entries)
    if optimizer is not None and _PLAIN in entries:
        text = bytes(read_entry(entries[_PLAIN]).tolist())
        restore_plain_state(model, optimizer, parse_json(text, f"{_PLAIN} of checkpoint {path}"))


def stored_block_shapes(path: Path) -> dict[str, tuple[int, int]]:
    """The block shape of every embedded convolution in ``path``, by layer name, without reading any values.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged; the message names the file.
    """
    return {
        name.removesuffix(_VALUES): (entry.shape[1], entry.shape[2])
        for name, entry in _entries(path).items()
        if name.endswith(_VALUES) and len(entry.shape) == 3
    }


def _states(entries: Mapping[str, Entry]) -> dict[int, dict[str, Entry]]:
    """The optimizer's entries by the place of their parameter."""
    states: dict[int, dict[str, Entry]] = {}
    for name, entry in entries.items():
        if name.startswith(_OPTIMIZER) and name != _PLAIN:
            found = _PLACE.fullmatch(name)
            if found is None:
                raise ValueError(f"its optimizer tensors must be called {_OPTIMIZER}<place>/<name>, got {name!r}")
            states.setdefault(int(found[1]), {})[found[2]] = entry
    return states


def _entries(path: Path) -> dict[str, Entry]:
    """Where each tensor lies in the file; what can be wrong with it is told with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        return {
            name.replace(_OLDER, _OPTIMIZER, 1) if name.startswith(_OLDER) else name: entry
            for name, entry in read_header(path).items()
        }
    except ValueError as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({' '.join(str(error).split())}): if it was to be gone on from, remove it, "
            "and the same command goes on from an earlier one"
        ) from None
