"""Checkpoints: a model and its optimiser at the end of an epoch, as one safetensors file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from efcn_sparse.training.atomic import replace_atomically
from efcn_sparse.training.optimiser import State, read_states, write_states

_OPTIMISER = "optimiser/"  # no module name holds a slash
_VALUES = ".linear.values"  # of an embedded convolution
_NAME = re.compile(r"(?P<stage>.+)-e(?P<epoch>\d+)\.safetensors")


def checkpoint_path(folder: Path, stage: str, epoch: int) -> Path:
    """Where the checkpoint of a stage at an epoch lies: ``<folder>/<stage>-e<epoch>.safetensors``."""
    return folder / f"{stage}-e{epoch}.safetensors"


def epochs_on_disk(folder: Path) -> dict[str, list[int]]:
    """The stages that have checkpoints in ``folder``, each with its epochs, increasing."""
    found: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(match["stage"], []).append(int(match["epoch"]))
    return {stage: sorted(epochs) for stage, epochs in found.items()}


def save_checkpoint(path: Path, model: nn.Module, optimiser: Optimizer | None = None) -> None:
    """Write ``model``'s state dict, and the optimiser's tensors beside it, atomically."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    for place, state in read_states(model, optimiser).items() if optimiser else ():
        tensors |= {f"{_OPTIMISER}{place}/{name}": tensor.contiguous() for name, tensor in state.items()}
    replace_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_checkpoint(path: Path, model: nn.Module, optimiser: Optimizer | None = None) -> None:
    """Bring ``model``, and the optimiser if given, to the state that ``path`` holds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or of another model; the message names the file.
    """
    with _opened(path):
        tensors = load_file(path)
    states: dict[int, State] = {}
    for name in [name for name in tensors if name.startswith(_OPTIMISER)]:
        place, key = name.removeprefix(_OPTIMISER).split("/")
        states.setdefault(int(place), {})[key] = tensors.pop(name)
    try:
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(f"checkpoint {path} must hold the state of this model: {told}") from None
    if optimiser is not None:
        write_states(model, optimiser, states)


def stored_block_shapes(path: Path) -> dict[str, tuple[int, int]]:
    """The block shape of every embedded convolution in ``path``, by layer name, without reading any values.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged; the message names the file.
    """
    with _opened(path), safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys() if name.endswith(_VALUES)}  # noqa: SIM118
    return {
        name.removesuffix(_VALUES): (shape[1], shape[2])
        for name, shape in shapes.items()
        if len(shape) == 3 and not name.startswith(_OPTIMISER)
    }


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[None]:
    """What can be wrong with a checkpoint's file, told with its name."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint {path} is damaged ({' '.join(str(error).split())}): if it was to be gone on from, remove it, "
            "and the same command goes on from an earlier one"
        ) from None
