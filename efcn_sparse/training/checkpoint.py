"""Checkpoints: a model and its optimiser at the end of an epoch, as one safetensors file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from efcn_sparse.training.atomic import replace_atomically

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
    for index, state in enumerate(_states(optimiser) if optimiser else []):
        tensors |= {f"{_OPTIMISER}{index}/{name}": t.contiguous() for name, t in state.items() if t is not None}
    replace_atomically(path, lambda temporary: save_file(tensors, temporary))


def load_checkpoint(path: Path, model: nn.Module, optimiser: Optimizer | None = None) -> None:
    """Bring ``model``, and the optimiser if given, to the state that ``path`` holds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or of another model; the message names the file.
    """
    with _opened(path):
        tensors = load_file(path)
    try:
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(_OPTIMISER)})
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path} must hold the state of this model: {' '.join(str(error).split())}"
        ) from None
    if optimiser is None:
        return
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMISER):
            index, key = name.removeprefix(_OPTIMISER).split("/")
            parameter = parameters[int(index)]
            like = tensor.to(parameter.device)
            # the memory format of the momentum decides the order of its sums, so it must be the parameter's
            optimiser.state[parameter][key] = like.new_empty(0) if like.numel() == 0 else _laid_out(like, parameter)


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


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.new_empty(like.shape).as_strided(like.shape, like.stride()).copy_(tensor)


def _states(optimiser: Optimizer) -> list[dict[str, Tensor]]:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    return [optimiser.state.get(parameter, {}) for parameter in parameters]
