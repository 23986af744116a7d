"""Weights as a dense tensor that can be read and not written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from efcn_sparse.ops.checks import under_transforms

_READS = {"__index__", "__int__", "__invert__"}  # begin like the names of in-place operators


class DenseWeight(Tensor):
    """What ``layer.weight`` returns: a tensor made at the moment, so that writing into it, or a view of it, is refused.

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
            if isinstance(out, cls) or (_writes(func) and any(isinstance(one, cls) for one in _targets(args, kwargs))):
                raise RuntimeError(
                    f"layer.weight of a sparse layer is made anew at each reading, so {func.__name__} would change "
                    "nothing; write into layer.values, as in layer.values.data.copy_(layer.pattern.gather(weight)), or "
                    "initialize with efcn_sparse.init; a LocallyConnected layer has load_weight; write into "
                    "layer.weight.clone() for a tensor beside it"
                )
            result = func(*args, **kwargs)
            shares = isinstance(result, Tensor) and any(_share(result, one) for one in args if isinstance(one, cls))
            return result.as_subclass(cls) if shares else result

    def __deepcopy__(self, memo: Any) -> Tensor:
        return copy.deepcopy(self.as_subclass(Tensor), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def as_dense_weight(weight: Tensor) -> Tensor:
    """A matrix made at the moment, as a :class:`DenseWeight` where tensors may be of a class of their own."""
    return weight if torch.compiler.is_compiling() or under_transforms() else weight.as_subclass(DenseWeight)


def _writes(func: Callable[..., Any]) -> bool:
    name = func.__name__
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (name.startswith("__i") and name not in _READS)
    return name.endswith("_")


def _targets(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    first = args[:1] or tuple(kwargs.get(name) for name in ("self", "tensor", "input"))
    return [one for entry in first for one in (entry if isinstance(entry, (list, tuple)) else [entry])]


def _share(one: Tensor, other: Tensor) -> bool:
    return one.layout is torch.strided and one.untyped_storage()._cdata == other.untyped_storage()._cdata
