"""Weights as a dense tensor that can be read and not written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from efcn_sparse.ops.checks import under_transforms

_READS = {"__index__", "__int__", "__invert__"}  # begin like the names of in-place operators


class DenseWeight(Tensor):
    """A tensor made at the moment, so that writing into it, or a view of it, is refused.

    Everything else gives plain tensors, with gradients, as for any other tensor.

    Raises:
        RuntimeError: an in-place operation, an ``out=``, or an assignment to ``data``.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            out = kwargs.get("out")
            targets = _targets(args, kwargs) if _writes(func) else [out]
            if isinstance(out, DenseWeight) or any(isinstance(one, DenseWeight) for one in targets):
                raise RuntimeError(
                    f"layer.weight of a sparse layer is made anew at each reading, so {func.__name__} would change "
                    "nothing; write into layer.values, as in layer.values.data.copy_(layer.pattern.gather(weight)), or "
                    "initialize with efcn_sparse.init; a LocallyConnected layer has load_weight; write into "
                    "layer.weight.clone() for a tensor beside it"
                )
            if func.__name__ in _READ_MEMORY and isinstance(args[0], LazyWeight):
                args = (args[0].numbers().detach().requires_grad_(args[0].requires_grad), *args[1:])
            ours = [one for one in args if isinstance(one, DenseWeight)]
            result = func(*args, **kwargs)
            if isinstance(result, (list, tuple)) and func.__name__ in _SEVERAL_VIEWS:
                return type(result)([_marked(one, ours) for one in result])
            return _marked(result, ours)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self._plain())

    def __deepcopy__(self, memo: Any) -> Tensor:
        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def _plain(self) -> Tensor:
        return self.as_subclass(Tensor)


class LazyWeight(DenseWeight):
    """What ``layer.weight`` returns: its facts at once, its numbers when they are first read.

    Models ask a weight for its dtype, device or shape in each call, and the matrix may be hundreds of times the work
    of the product. Below autograd it is what ``make()`` gives; its gradient goes where :func:`lazy_weight` says.
    """

    _make: Callable[[], Tensor]
    _made: Tensor | None

    @staticmethod
    def __new__(cls, shape: Sequence[int], like: Tensor, make: Callable[[], Tensor]) -> LazyWeight:
        weight: LazyWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        weight._make, weight._made = make, None
        return weight

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(cls, _numbers_of, (args, kwargs or {}))
        return func(*args, **kwargs)

    def numbers(self) -> Tensor:
        """The matrix, without a history."""
        if self._made is None:
            with torch.inference_mode(False), torch.no_grad():
                self._made = self._make()
        return self._made

    def _plain(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.clone()


def lazy_weight(
    shape: Sequence[int],
    make: Callable[..., Tensor],
    adjoint: Callable[[Tensor], tuple[Tensor | None, ...]],
    *tensors: Tensor,
) -> Tensor:
    """``make(*tensors)`` of that shape, made when it is first read; ``adjoint`` gives the gradients of ``tensors``.

    Where tensors must be plain, as under ``torch.compile``, it is made at once.
    """
    at_once = torch.compiler.is_compiling() or under_transforms() or torch.jit.is_tracing()
    if at_once or any(type(one) not in (Tensor, nn.Parameter) or one.is_inference() for one in tensors):
        return as_dense_weight(make(*tensors))
    return _Lazily.apply(shape, make, adjoint, *tensors)


class _Lazily(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, shape: Sequence[int], make: Callable[..., Tensor], adjoint: Callable[..., Any], *tensors: Tensor
    ) -> Tensor:
        ctx.adjoint = adjoint
        places = _places(tensors)

        def make_once() -> Tensor:
            if _places(tensors) != places:
                raise RuntimeError(
                    "layer.weight must be read before the values change, got one that was taken before: take it anew, "
                    "or keep layer.weight.clone()"
                )
            return make(*tensors)

        return LazyWeight(shape, tensors[0], make_once)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *ctx.adjoint(gradient)


def _places(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(one._version, 0 if one.is_meta else one.data_ptr()) for one in tensors]


_SEVERAL_VIEWS = {"chunk", "split", "tensor_split", "hsplit", "vsplit", "unbind", "unsafe_chunk", "unsafe_split"}
# What looks into the memory of a tensor past the operations.
_READ_MEMORY = {
    "data_ptr", "untyped_storage", "storage", "_typed_storage", "numpy", "__array__", "__dlpack__", "tolist",
    "share_memory_", "is_shared",
}  # fmt: skip


def as_dense_weight(weight: Tensor) -> Tensor:
    """A matrix made at the moment, as a :class:`DenseWeight` where tensors may be of a class of their own."""
    return weight if torch.compiler.is_compiling() or under_transforms() else weight.as_subclass(DenseWeight)


def _numbers_of(weight: Tensor) -> Tensor:
    return weight.numbers() if isinstance(weight, LazyWeight) else weight


def _writes(func: Callable[..., Any]) -> bool:
    name = func.__name__
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in _READS)
    return name.endswith("_")


def _targets(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    first = args[:1] or tuple(kwargs.get(name) for name in ("self", "tensor", "input"))
    return [one for entry in first for one in (entry if isinstance(entry, (list, tuple)) else [entry])]


def _marked(result: Any, weights: Sequence[DenseWeight]) -> Any:
    """What an operation on ``weights`` gave, as one of them if it shares their memory."""
    shares = isinstance(result, Tensor) and any(_share(result, one) for one in weights)
    return result.as_subclass(DenseWeight) if shares else result


def _share(one: Tensor, other: Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(one) or (isinstance(other, LazyWeight) and other._made is None):
        return False
    other = _numbers_of(other)
    return one.layout is torch.strided and one.untyped_storage()._cdata == other.untyped_storage()._cdata
