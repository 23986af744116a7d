"""Bad input to the operations, refused with the argument's name before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import GradInterpreter, retrieve_all_functorch_interpreters
from torch._guards import TracingContext
from torch.autograd import forward_ad
from torch.torch_version import TorchVersion

from efcn_sparse.pattern import BlockPattern, Structure
from efcn_sparse.pattern.checks import check_structure

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
_AUTOCAST_DEVICES = ("cpu", "cuda")  # asking torch which there are would break a graph of torch.compile


def check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.is_nested or tensor.layout != torch.strided:
        kind = "a nested tensor" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} must be a dense (strided) tensor, got {kind}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")


def check_backend(backend: str) -> None:
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a string, got {type(backend).__name__}")


def check_features(name: str, tensor: Tensor, features: int) -> None:
    if tensor.dim() == 0 or tensor.shape[-1] != features:
        raise ValueError(f"{name} must be [..., {features}], got {list(tensor.shape)}")


def check_alike(
    name: str, tensor: Tensor, other_name: str, other: Tensor, *, may_cast: bool = True, may_be_fp32: bool = False
) -> None:
    """One device for both; one dtype too, unless autocast sees to that, or ``tensor`` may be fp32 beside 16 bits."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")
    widens = may_be_fp32 and tensor.dtype == torch.float32 and other.dtype.itemsize == 2
    if tensor.dtype != other.dtype and not widens and not (may_cast and _autocast_unites(tensor, other)):
        alternative = " or torch.float32" if may_be_fp32 and other.dtype.itemsize == 2 else ""
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}{alternative}, got {tensor.dtype}")


def _autocast_unites(tensor: Tensor, other: Tensor) -> bool:
    """Whether autocast gives both the same dtype: it is on for their device, and neither is fp64, which it leaves."""
    return torch.float64 not in (tensor.dtype, other.dtype) and autocast_is_on(tensor)


def autocast_is_on(tensor: Tensor) -> bool:
    device = tensor.device.type
    return device in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def check_apart(out: Tensor, name: str, other: Tensor) -> None:
    """``out`` must not lie where ``other`` is still to be read."""
    if torch.compiler.is_compiling() or out.is_meta or 0 in (out.numel(), other.numel()):
        return
    if out.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
        return
    (first, last), (other_first, other_last) = _span(out), _span(other)
    if first <= other_last and other_first <= last:
        raise ValueError(f"out must not share memory with {name}")


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first and the last byte of a tensor's storage that it can touch."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = int(tensor.storage_offset()) * tensor.element_size()
    return first, first + (int(reach) + 1) * tensor.element_size() - 1


def check_pattern(pattern: BlockPattern, name: str, tensor: Tensor) -> None:
    if not isinstance(pattern, BlockPattern):
        raise TypeError(f"pattern must be a BlockPattern, got {type(pattern).__name__}")
    if pattern.device != tensor.device and tensor.device.type != "meta":
        raise ValueError(
            f"pattern must be on the device of {name}, {tensor.device}, got {pattern.device}; use pattern.to(...)"
        )


def check_scaling(alpha: float, beta: float) -> None:
    if (alpha, beta) != (1.0, 0.0):
        raise ValueError(f"alpha and beta need out to accumulate into, got alpha={alpha}, beta={beta} and out=None")


def check_out(
    out: Tensor, shape: tuple[int, ...], inputs: dict[str, Tensor | None], *, may_be_fp32: bool = False
) -> None:
    check_floating("out", out)
    if tuple(out.shape) != shape:
        raise ValueError(f"out must be {list(shape)}, got {list(out.shape)}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {list(out.stride())}")
    given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    for name, tensor in given.items():
        check_alike("out", out, name, tensor, may_cast=False, may_be_fp32=may_be_fp32)
        check_apart(out, name, tensor)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (out, *given.values())):
        raise RuntimeError("out is written in place without gradient: call under torch.no_grad()")


def look_at(tensors: Sequence[Tensor], shape: Sequence[int], block_shape: Sequence[int]) -> None:
    """Check the arrays of a structure when they are first seen, and whenever they were written to."""
    structure, sides, block = Structure(*tensors), tuple(shape), tuple(block_shape)
    structure.remembered(("checked", sides, block), lambda: check_structure(structure, sides, block))


def checked_structure(tensors: Sequence[Tensor], shape: Sequence[int], values: Tensor, like: Tensor) -> Structure:
    """``tensors`` by name, checked, and fit for ``values`` and the operands."""
    look_at(tensors, shape, values.shape[1:])
    structure = Structure(*tensors)
    blocks, device = structure.col_indices.shape[0], structure.col_indices.device
    if values.shape[0] != blocks:
        raise ValueError(f"values must hold {blocks} blocks, got {values.shape[0]}")
    if device != like.device:
        raise ValueError(f"structure must be on the device of the operands, {like.device}, got {device}")
    return structure


def check_operand(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """What an operator was given: of that shape, on the device and of the dtype of ``like``."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        expected, got = f"{like.dtype} on {like.device}", f"{tensor.dtype} on {tensor.device}"
        raise TypeError(f"{name} must be {expected} as the other operands are, got {got}")


def under_transforms() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is on."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refuse_fatal_trace(arguments: Sequence[object]) -> None:
    """Refuse to be compiled where torch would end the process when what was compiled runs.

    Where ``jvp`` of ``grad`` is to be differentiated from outside, AOTAutograd puts efficient zero tensors into its
    graph. These have no memory, and Inductor before torch 2.14 reads it.
    """
    if TorchVersion(torch.__version__) >= "2.14" or TracingContext.try_get() is None:
        return
    forward = False  # whether a level of jvp is around
    for level in retrieve_all_functorch_interpreters():
        forward |= level.key() == TransformType.Jvp
        recorded = forward and isinstance(level, GradInterpreter) and level.prev_grad_mode()
        if recorded and any(isinstance(one, Tensor) and _innermost(one).requires_grad for one in arguments):
            raise RuntimeError(
                "torch.compile of jvp of grad must not read tensors that require grad from outside, or torch may end "
                "the process; detach() parameters and bias before, or call it under torch.no_grad()"
            )


def _innermost(tensor: Tensor) -> Tensor:
    """``tensor`` without what the transforms of ``torch.func`` have put around it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor
