"""Running a model on an example without leaving a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Largest difference between two outputs, as a share of the largest output.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_TF32_TOLERANCE = 1e-2


def checked_example(example_input: Any) -> tuple[Tensor, ...]:
    """The positional arguments of the example run."""
    example = (example_input,) if isinstance(example_input, Tensor) else example_input
    if not isinstance(example, (tuple, list)) or not example or not all(isinstance(x, Tensor) for x in example):
        raise TypeError(f"example_input must be a tensor or a tuple of tensors, got {type(example_input).__name__}")
    return tuple(example)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training flags, buffers and random generators are put back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gpus = sorted({p.get_device() for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=gpus), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            for owner, name, buffer, saved in buffers:
                owner[name] = buffer.copy_(saved)


def sizes_in_run(
    model: nn.Module, example: tuple[Tensor, ...], convolutions: Iterable[nn.Module]
) -> tuple[Any, dict[int, list[tuple[int, ...]]]]:
    """The model's output on the example, and by ``id`` the distinct input sizes of each convolution, in call order."""
    seen: dict[int, list[tuple[int, ...]]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = arguments[0] if arguments else named["input"]
        size = tuple(x.shape[-len(module.kernel_size) :])  # type: ignore[arg-type]
        calls = seen.setdefault(id(module), [])
        if size not in calls:
            calls.append(size)

    hooks = [conv.register_forward_pre_hook(note, with_kwargs=True) for conv in convolutions]
    try:
        with undisturbed(model):
            return model(*example), seen
    finally:
        for hook in hooks:
            hook.remove()


def run_embedded(twin: nn.Module, kind: type[nn.Module], example: tuple[Tensor, ...]) -> Any:
    """The output of the embedded copy; where channels last stops it, its layers return contiguous feature maps.

    Args:
        kind: of the layers that have ``contiguous_output``.

    Raises:
        ValueError: the copy runs with neither.
    """
    layers: list[Any] = [module for module in twin.modules() if isinstance(module, kind)]
    for contiguous in (False, True):
        for layer in layers:
            layer.contiguous_output = contiguous
        try:
            with undisturbed(twin):
                return twin(*example)
        except Exception as error:
            failure = error
    name = type(failure).__name__
    raise ValueError(f"the embedded copy must run on the example, got {name}: {failure}") from failure


def check_same_output(expected: Any, got: Any) -> None:
    """Raise ``ValueError`` unless two outputs of a model, tensors however nested, are equal up to rounding."""
    pairs = list(zip(_tensors(expected), _tensors(got), strict=False))
    if not pairs or len(pairs) != len(list(_tensors(expected))):
        raise ValueError(f"embed compares outputs, so the model must return tensors, got {type(expected).__name__}")
    for before, after in pairs:
        if before.shape != after.shape or before.dtype != after.dtype:
            raise ValueError(
                f"the embedded copy must return {list(before.shape)} of {before.dtype} on the example, "
                f"got {list(after.shape)} of {after.dtype}"
            )
        if not before.is_floating_point() or not before.numel():
            continue
        tolerance = _TOLERANCE.get(before.dtype, 1e-4)
        if before.is_cuda and before.dtype == torch.float32:
            tolerance = max(tolerance, _TF32_TOLERANCE)
        finite = before.isfinite()
        largest = before[finite].abs().max().double() if bool(finite.any()) else before.new_zeros(())
        difference = (before[finite].double() - after[finite].double()).abs()
        worst = float(difference.max() / largest.clamp(min=1e-30)) if difference.numel() else 0.0
        same_elsewhere = torch.equal(before[~finite].nan_to_num(), after[~finite].nan_to_num())
        if not worst <= tolerance or not same_elsewhere:
            raise ValueError(
                f"the embedded copy must compute what the model does on the example, to {tolerance:g} of the largest "
                f"output, got a difference of {worst:.3g}; is a convolution's weight used outside its own call?"
            )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from _tensors([getattr(output, field.name) for field in dataclasses.fields(output)])
