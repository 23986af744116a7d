"""The two operations under ``torch.func`` (grad, vmap, jvp, …) and under forward-mode differentiation.

They are the derivatives of ``contract`` once more, as autograd functions of the kind that transforms can look into.
Those bind their arguments anew at each call, which takes longer than a small layer: so they stand in only where needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import efcn_sparse.ops.contract  # noqa: F401  # defines the operators
from efcn_sparse.pattern import BlockPattern


def under_transforms() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation is on."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def spmm_under_transforms(
    x: Tensor, values: Tensor, bias: Tensor | None, pattern: BlockPattern, transpose: bool, backend: str
) -> Tensor:
    """``x Wᵀ + bias`` (``x W + bias`` with ``transpose``) of matrices, for every transform."""
    x, values, bias = _as_autocast(x, values, bias)
    y: Tensor = _Spmm.apply(x, values, pattern, transpose, backend)
    return y if bias is None else y + bias


def sddmm_under_transforms(a: Tensor, b: Tensor, pattern: BlockPattern, backend: str) -> Tensor:
    """``aᵀ b`` at the stored blocks, of matrices, for every transform."""
    a, b = _as_autocast(a, b)
    values: Tensor = _Sddmm.apply(a, b, pattern, backend)
    return values


def _as_autocast(*tensors: Any) -> Any:
    """The operands in autocast's dtype, which must be theirs in backward too; as they are where it is off."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


class _Spmm(torch.autograd.Function):
    generate_vmap_rule = True  # from those of the operators, below

    @staticmethod
    def forward(x: Tensor, values: Tensor, pattern: BlockPattern, transpose: bool, backend: str) -> Tensor:
        return torch.ops.efcn_sparse.spmm(x, values, None, pattern.structure, pattern.shape, transpose, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, ctx.pattern, ctx.transpose, ctx.backend = inputs
        ctx.save_for_backward(x, values)
        ctx.save_for_forward(x, values)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, values = ctx.saved_tensors
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            dx = _Spmm.apply(dy, values, ctx.pattern, not ctx.transpose, ctx.backend)
        if ctx.needs_input_grad[1]:
            a, b = (x, dy) if ctx.transpose else (dy, x)
            dvalues = _Sddmm.apply(a, b, ctx.pattern, ctx.backend)
        return dx, dvalues, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, values_tangent: Tensor | None, *_: None) -> Tensor:
        x, values = ctx.saved_tensors
        rest = (ctx.pattern, ctx.transpose, ctx.backend)
        return _sum_of_those(
            None if x_tangent is None else _Spmm.apply(x_tangent, values, *rest),
            None if values_tangent is None else _Spmm.apply(x, values_tangent, *rest),
        )


class _Sddmm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, pattern: BlockPattern, backend: str) -> Tensor:
        return torch.ops.efcn_sparse.sddmm(a, b, pattern.structure, pattern.shape, pattern.block_shape, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        a, b, ctx.pattern, ctx.backend = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor) -> tuple[Any, ...]:
        a, b = ctx.saved_tensors
        da = db = None
        if ctx.needs_input_grad[0]:
            da = _Spmm.apply(b, dvalues, ctx.pattern, False, ctx.backend)
        if ctx.needs_input_grad[1]:
            db = _Spmm.apply(a, dvalues, ctx.pattern, True, ctx.backend)
        return da, db, None, None

    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor | None, b_tangent: Tensor | None, *_: None) -> Tensor:
        a, b = ctx.saved_tensors
        return _sum_of_those(
            None if a_tangent is None else _Sddmm.apply(a_tangent, b, ctx.pattern, ctx.backend),
            None if b_tangent is None else _Sddmm.apply(a, b_tangent, ctx.pattern, ctx.backend),
        )


def _sum_of_those(first: Tensor | None, second: Tensor | None) -> Tensor:
    """The sum of the parts of a tangent that are there; at least one is."""
    if first is None or second is None:
        found = second if first is None else first
        assert found is not None
        return found
    return first + second


# -- batches of operands -----------------------------------------------------------------------------------------


def _spmm_of_batch(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any
) -> Any:
    x_dim, values_dim, bias_dim = in_dims[:3]
    if values_dim is None and bias_dim is None:  # one W for all: the batch is more rows of x
        x = x.movedim(x_dim, 0)
        y = torch.ops.efcn_sparse.spmm(x.reshape(-1, x.shape[2]), values, bias, *rest)
        return y.view(*x.shape[:2], y.shape[1]), 0
    parts = _slices(info.batch_size, (x, x_dim), (values, values_dim), (bias, bias_dim))
    return torch.stack([torch.ops.efcn_sparse.spmm(*part, *rest) for part in parts]), 0


def _sddmm_of_batch(info: Any, in_dims: tuple[Any, ...], a: Tensor, b: Tensor, *rest: Any) -> Any:
    parts = _slices(info.batch_size, (a, in_dims[0]), (b, in_dims[1]))
    return torch.stack([torch.ops.efcn_sparse.sddmm(*part, *rest) for part in parts]), 0


def _slices(size: int, *operands: tuple[Tensor | None, int | None]) -> Iterator[tuple[Tensor | None, ...]]:
    """The operands of each element of the batch; one without a batch dimension is the same in all."""
    for k in range(size):
        yield tuple(t if t is None or dim is None else t.select(dim, k) for t, dim in operands)


torch.library.register_vmap("efcn_sparse::spmm", _spmm_of_batch)
torch.library.register_vmap("efcn_sparse::sddmm", _sddmm_of_batch)
