"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for the operators: two FLOPs a stored number and row."""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"


def count_flops() -> None:
    """Give the counter our formulas, now or when it is first imported: it imports Triton, which takes 0.4 s."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the counter as others would, and registers the formulas when its module is there."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _register(counter: ModuleType) -> None:
    ops = torch.ops.efcn_sparse
    for packet, formula in ((ops.spmm, _spmm), (ops.sddmm, _sddmm), (ops.spmm_, _spmm_into), (ops.sddmm_, _sddmm_into)):
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(formula)


# each gets the shapes of the operator's arguments and, as out_shape, of its result


def _spmm(x: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * math.prod(values)


def _sddmm(a: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * a[0] * math.prod(out_shape)


def _spmm_into(y: Sequence[int], x: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    return _spmm(x, values)


def _sddmm_into(values: Sequence[int], a: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * math.prod(values)
