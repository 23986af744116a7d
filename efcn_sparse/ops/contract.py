"""The operators: schema, shapes, derivatives, autocast. What runs is a backend's affair.

Both operations are closed under differentiation (DESIGN.md, section 3), so every derivative of any order is again
one of these two. Schemas are defined by ``torch.library.Library``: about 1.7 µs a call, where
``torch.library.custom_op`` costs about 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efcn_sparse.ops.backends import BACKENDS
from efcn_sparse.ops.checks import check_matrix, checked_structure
from efcn_sparse.ops.select import resolve

_LIBRARY = torch.library.Library("efcn_sparse", "DEF")
_PATTERN = "Tensor[] structure, SymInt[] shape"
_SCHEMAS = (
    f"spmm(Tensor x, Tensor values, Tensor? bias, {_PATTERN}, bool transpose, str backend) -> Tensor",
    f"sddmm(Tensor a, Tensor b, {_PATTERN}, SymInt[] block_shape, str backend) -> Tensor",
    f"spmm_(Tensor(a!) y, Tensor x, Tensor values, Tensor? bias, {_PATTERN}, bool transpose, "
    "float alpha, float beta, str backend) -> ()",
    f"sddmm_(Tensor(a!) values, Tensor a, Tensor b, {_PATTERN}, float alpha, float beta, str backend) -> ()",
)
for _schema in _SCHEMAS:
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _row_major(matrix: Tensor) -> Tensor:
    """``matrix`` itself if its rows are contiguous and apart, else a copy: kernels take a row stride, no more."""
    rows_apart = matrix.shape[0] <= 1 or matrix.stride(0) >= matrix.shape[1]
    return matrix if rows_apart and (matrix.stride(1) == 1 or matrix.shape[1] <= 1) else matrix.contiguous()


# -- kernels -----------------------------------------------------------------------------------------------------


def _spmm_into(y, x, values, bias, structure, shape, transpose, alpha, beta, backend) -> None:
    run = BACKENDS[resolve(backend, x.device, x.dtype)]
    known = checked_structure(structure, shape, values, x)
    out_features, in_features = (shape[1], shape[0]) if transpose else shape
    check_matrix("x", x, x.shape[0], in_features, values)
    check_matrix("y", y, x.shape[0], out_features, values)
    if bias is not None:
        check_matrix("bias", bias[None], 1, out_features, values)
    if y.numel() == 0:
        return
    if alpha == 0.0:  # as BLAS has it: what is not finite in the operands does not matter
        y.mul_(beta) if beta else y.zero_()
        return
    run.spmm(y, _row_major(x), values.contiguous(), bias, known, shape, transpose, alpha, beta)


def _sddmm_into(values, a, b, structure, shape, alpha, beta, backend) -> None:
    run = BACKENDS[resolve(backend, a.device, a.dtype)]
    known = checked_structure(structure, shape, values, a)
    check_matrix("a", a, a.shape[0], shape[0], b)
    check_matrix("b", b, a.shape[0], shape[1], a)
    if values.numel() == 0:
        return
    if a.shape[0] == 0 or alpha == 0.0:  # a row of zeros: values are scaled, and cleared outside the support
        a, b, alpha = a.new_zeros((1, shape[0])), b.new_zeros((1, shape[1])), 1.0
    run.sddmm(values, _row_major(a), _row_major(b), known, shape, alpha, beta)


def _spmm(x, values, bias, structure, shape, transpose, backend) -> Tensor:
    y = x.new_empty((x.shape[0], shape[1] if transpose else shape[0]))
    _spmm_into(y, x, values, bias, structure, shape, transpose, 1.0, 0.0, backend)
    return y


def _sddmm(a, b, structure, shape, block_shape, backend) -> Tensor:
    values = a.new_empty((structure[1].shape[0], *block_shape))
    _sddmm_into(values, a, b, structure, shape, 1.0, 0.0, backend)
    return values


for _name, _kernel in (("spmm", _spmm), ("sddmm", _sddmm), ("spmm_", _spmm_into), ("sddmm_", _sddmm_into)):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")


@torch.library.register_fake("efcn_sparse::spmm", lib=_LIBRARY)
def _(x, values, bias, structure, shape, transpose, backend) -> Tensor:
    return x.new_empty((x.shape[0], shape[1] if transpose else shape[0]))


@torch.library.register_fake("efcn_sparse::sddmm", lib=_LIBRARY)
def _(a, b, structure, shape, block_shape, backend) -> Tensor:
    return a.new_empty((structure[1].shape[0], *block_shape))


@torch.library.register_fake("efcn_sparse::spmm_", lib=_LIBRARY)
def _(y, x, values, bias, structure, shape, transpose, alpha, beta, backend) -> None:
    return None


@torch.library.register_fake("efcn_sparse::sddmm_", lib=_LIBRARY)
def _(values, a, b, structure, shape, alpha, beta, backend) -> None:
    return None


# -- derivatives -------------------------------------------------------------------------------------------------
# Plain autograd functions under the Autograd key: torch.library.register_autograd flattens the arguments as a pytree
# at each call, which costs four times what is left of a small layer's call.


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, structure, shape, transpose, backend):
        needs_x, needs_values = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_values else None, values if needs_x else None, *structure)
        ctx.shape, ctx.block_shape, ctx.transpose, ctx.backend = shape, values.shape[1:], transpose, backend
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.efcn_sparse.spmm(x, values, bias, structure, shape, transpose, backend)

    @staticmethod
    def backward(ctx, dy):
        x, values, *structure = ctx.saved_tensors
        needs_x, needs_values, needs_bias = ctx.needs_input_grad[:3]
        dx = dvalues = dbias = None
        if needs_x:
            dx = torch.ops.efcn_sparse.spmm(dy, values, None, structure, ctx.shape, not ctx.transpose, ctx.backend)
        if needs_values:
            a, b = (x, dy) if ctx.transpose else (dy, x)
            dvalues = torch.ops.efcn_sparse.sddmm(a, b, structure, ctx.shape, ctx.block_shape, ctx.backend)
        if needs_bias:
            dbias = dy.sum(0)
        return dx, dvalues, dbias, None, None, None, None


class _Sddmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, structure, shape, block_shape, backend):
        needs_a, needs_b = ctx.needs_input_grad[:2]
        ctx.save_for_backward(a if needs_b else None, b if needs_a else None, *structure)
        ctx.shape, ctx.backend = shape, backend
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.efcn_sparse.sddmm(a, b, structure, shape, block_shape, backend)

    @staticmethod
    def backward(ctx, dvalues):
        a, b, *structure = ctx.saved_tensors
        needs_a, needs_b = ctx.needs_input_grad[:2]
        da = db = None
        if needs_a:
            da = torch.ops.efcn_sparse.spmm(b, dvalues, None, structure, ctx.shape, False, ctx.backend)
        if needs_b:
            db = torch.ops.efcn_sparse.spmm(a, dvalues, None, structure, ctx.shape, True, ctx.backend)
        return da, db, None, None, None, None


_LIBRARY.impl("spmm", _Spmm.apply, "Autograd")
_LIBRARY.impl("sddmm", _Sddmm.apply, "Autograd")


# -- autocast ----------------------------------------------------------------------------------------------------


def _register_autocast(name: str, tensors: int, device: str) -> None:
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device]
    operator = getattr(torch.ops.efcn_sparse, name)
    without_autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        eligible = tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if tensor is not None and eligible else tensor

    def kernel(*arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(without_autocast):
            return operator(*(cast(argument, dtype) for argument in arguments[:tensors]), *arguments[tensors:])

    _LIBRARY.impl(name, kernel, key)


for _device in ("cpu", "cuda"):
    _register_autocast("spmm", 3, _device)
    _register_autocast("sddmm", 2, _device)
    _register_autocast("spmm_", 0, _device)  # what is accumulated into has its dtype: nothing is cast, inside neither
    _register_autocast("sddmm_", 0, _device)
