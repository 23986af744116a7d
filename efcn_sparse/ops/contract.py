"""The operators: schema, shapes, derivatives, autocast. What runs is a backend's affair.

Both operations are closed under differentiation (DESIGN.md, section 3), so every derivative of any order is again
one of these two. Schemas are defined by ``torch.library.Library``: about 1.7 µs a call, where
``torch.library.custom_op`` costs about 8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from efcn_sparse.ops.backends import BACKENDS
from efcn_sparse.ops.checks import check_operand, checked_structure, look_at, refuse_fatal_trace
from efcn_sparse.ops.select import resolve

_LIBRARY = torch.library.Library("efcn_sparse", "DEF")
_PATTERN = "Tensor[] structure, int[] shape"
_SCHEMAS = (
    f"spmm(Tensor x, Tensor values, Tensor? bias, {_PATTERN}, bool transpose, str backend) -> Tensor",
    f"sddmm(Tensor a, Tensor b, {_PATTERN}, int[] block_shape, str backend) -> Tensor",
    f"spmm_(Tensor(a!) y, Tensor x, Tensor values, Tensor? bias, {_PATTERN}, bool transpose, "
    "float alpha, float beta, str backend) -> ()",
    f"sddmm_(Tensor(a!) values, Tensor a, Tensor b, {_PATTERN}, float alpha, float beta, str backend) -> ()",
    f"check_structure({_PATTERN}, int[] block_shape) -> ()",
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
    check_operand("x", x, (x.shape[0], in_features), values)
    check_operand("y", y, (x.shape[0], out_features), values)
    if bias is not None:
        check_operand("bias", bias, (out_features,), values)
    if y.numel() == 0:
        return
    if alpha == 0.0:  # as BLAS has it: what is not finite in the operands does not matter
        y.mul_(beta) if beta else y.zero_()
        return
    run.spmm(y, _row_major(x), values.contiguous(), bias, known, shape, transpose, alpha, beta)


def _sddmm_into(values, a, b, structure, shape, alpha, beta, backend) -> None:
    run = BACKENDS[resolve(backend, a.device, a.dtype)]
    known = checked_structure(structure, shape, values, a)
    check_operand("a", a, (a.shape[0], shape[0]), b)
    check_operand("b", b, (a.shape[0], shape[1]), a)
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
_LIBRARY.impl("check_structure", look_at, "CompositeExplicitAutograd")  # for csrc/contract.cpp


@torch.library.register_fake("efcn_sparse::spmm", lib=_LIBRARY)
def _(x, values, bias, structure, shape, transpose, backend) -> Tensor:
    return x.new_empty((x.shape[0], shape[1] if transpose else shape[0]))


@torch.library.register_fake("efcn_sparse::sddmm", lib=_LIBRARY)
def _(a, b, structure, shape, block_shape, backend) -> Tensor:
    return a.new_empty((structure[1].shape[0], *block_shape))


for _name in ("spmm_", "sddmm_"):
    torch.library.register_fake(f"efcn_sparse::{_name}", lambda *_: None, lib=_LIBRARY)


# -- derivatives -------------------------------------------------------------------------------------------------
# Of the kind that torch.func and forward mode can look into. They are registered under the Autograd key, where
# torch.library.register_autograd would flatten all arguments at each call.


@contextlib.contextmanager
def _restored(modes: tuple[bool, bool] | None) -> Iterator[None]:
    """A transform around this one records only where these are on, and an autograd function turns them off."""
    if modes is None:
        yield
    else:
        with torch.set_grad_enabled(modes[0]), forward_ad._set_fwd_grad_enabled(modes[1]):
            yield


@contextlib.contextmanager
def _within_jvp(*operands: Tensor) -> Iterator[list[Tensor]]:
    """The operands without their own tangents, and forward mode on for the transforms around this one.

    Torch turns it off around the ``jvp`` of an autograd function: a tangent of the tangent would be lost.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [torch._VF._unpack_dual(operand, level=0)[0] for operand in operands]


class _Spmm(_SingleLevelFunction):
    @staticmethod
    def forward(x, values, bias, structure, shape, transpose, backend, modes):
        with torch._C._AutoDispatchBelowAutograd(), _restored(modes):
            return torch.ops.efcn_sparse.spmm(x, values, bias, structure, shape, transpose, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, values, _, structure, ctx.shape, ctx.transpose, ctx.backend, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.block_shape = values.shape[1:]
        needs_x, needs_values = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_values else None, values if needs_x else None, *structure)
        ctx.save_for_forward(x, values, *structure)

    @staticmethod
    def backward(ctx, dy):
        x, values, *structure = ctx.saved_tensors
        needs_x, needs_values, needs_bias = (needed and dy is not None for needed in ctx.needs_input_grad[:3])
        dx = dvalues = dbias = None
        if needs_x:
            dx = torch.ops.efcn_sparse.spmm(dy, values, None, structure, ctx.shape, not ctx.transpose, ctx.backend)
        if needs_values:
            a, b = (x, dy) if ctx.transpose else (dy, x)
            dvalues = torch.ops.efcn_sparse.sddmm(a, b, structure, ctx.shape, ctx.block_shape, ctx.backend)
        if needs_bias:
            dbias = dy.sum(0)
        return dx, dvalues, dbias, None, None, None, None, None

    @staticmethod
    def jvp(ctx, x_tangent, values_tangent, bias_tangent, *_):
        x, values, *structure = ctx.saved_tensors
        rest = (structure, ctx.shape, ctx.transpose, ctx.backend)
        with _within_jvp(x, values) as (x, values):
            parts = [] if bias_tangent is None else [bias_tangent.expand(x.shape[0], -1)]
            if x_tangent is not None:
                parts.append(torch.ops.efcn_sparse.spmm(x_tangent, values, None, *rest))
            if values_tangent is not None:
                parts.append(torch.ops.efcn_sparse.spmm(x, values_tangent, None, *rest))
            return sum(parts[1:], parts[0])


class _Sddmm(_SingleLevelFunction):
    @staticmethod
    def forward(a, b, structure, shape, block_shape, backend, modes):
        with torch._C._AutoDispatchBelowAutograd(), _restored(modes):
            return torch.ops.efcn_sparse.sddmm(a, b, structure, shape, block_shape, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, structure, ctx.shape, ctx.block_shape, ctx.backend, _ = inputs
        ctx.set_materialize_grads(False)
        needs_a, needs_b = ctx.needs_input_grad[:2]
        ctx.save_for_backward(a if needs_b else None, b if needs_a else None, *structure)
        ctx.save_for_forward(a, b, *structure)

    @staticmethod
    def backward(ctx, dvalues):
        a, b, *structure = ctx.saved_tensors
        needs_a, needs_b = (needed and dvalues is not None for needed in ctx.needs_input_grad[:2])
        da = db = None
        if needs_a:
            da = torch.ops.efcn_sparse.spmm(b, dvalues, None, structure, ctx.shape, False, ctx.backend)
        if needs_b:
            db = torch.ops.efcn_sparse.spmm(a, dvalues, None, structure, ctx.shape, True, ctx.backend)
        return da, db, None, None, None, None, None

    @staticmethod
    def jvp(ctx, a_tangent, b_tangent, *_):
        a, b, *structure = ctx.saved_tensors
        rest = (structure, ctx.shape, ctx.block_shape, ctx.backend)
        with _within_jvp(a, b) as (a, b):
            parts = [] if a_tangent is None else [torch.ops.efcn_sparse.sddmm(a_tangent, b, *rest)]
            if b_tangent is not None:
                parts.append(torch.ops.efcn_sparse.sddmm(a, b_tangent, *rest))
            return sum(parts[1:], parts[0])


def _register_derivatives(name: str, function: Any) -> None:
    """Of the kind that torch.func makes for one of its levels: it has dispatched to us already, level by level."""

    def kernel(*arguments):
        if not torch._C._are_functorch_transforms_active():
            return function.apply(*arguments, None)
        refuse_fatal_trace(arguments)
        with enable_single_level_autograd_function():
            return function.apply(*arguments, (torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()))

    _LIBRARY.impl(name, kernel, "Autograd")


_register_derivatives("spmm", _Spmm)
_register_derivatives("sddmm", _Sddmm)


# -- batches of operands under torch.func.vmap ----------------------------------------------------------------------


def _spmm_of_batch(info, in_dims, x, values, bias, *rest) -> tuple[Tensor, int]:
    x_dim, values_dim, bias_dim = in_dims[:3]
    if values_dim is None and bias_dim is None:  # one W for all: the batch is more rows of x
        x = x.movedim(x_dim, 0)
        y = torch.ops.efcn_sparse.spmm(x.reshape(-1, x.shape[2]), values, bias, *rest)
        return y.view(*x.shape[:2], y.shape[1]), 0
    parts = _slices(info.batch_size, (x, x_dim), (values, values_dim), (bias, bias_dim))
    return torch.stack([torch.ops.efcn_sparse.spmm(*part, *rest) for part in parts]), 0


def _sddmm_of_batch(info, in_dims, a, b, *rest) -> tuple[Tensor, int]:
    parts = _slices(info.batch_size, (a, in_dims[0]), (b, in_dims[1]))
    return torch.stack([torch.ops.efcn_sparse.sddmm(*part, *rest) for part in parts]), 0


def _slices(size: int, *operands: tuple[Tensor | None, int | None]) -> Iterator[tuple[Tensor | None, ...]]:
    """The operands of each element of the batch; one without a batch dimension is the same in all."""
    for k in range(size):
        yield tuple(t if t is None or dim is None else t.select(dim, k) for t, dim in operands)


def _register_batches(name: str, of_batch: Any, tensors: int) -> None:
    """For :func:`torch.func.vmap`, and for the older one inside ``torch.autograd.grad(is_grads_batched=True)``."""
    torch.library.register_vmap(f"efcn_sparse::{name}", of_batch, lib=_LIBRARY)

    def kernel(*arguments):
        level = max(1, torch._C._vmapmode_increment_nesting() - 1)  # 0 in threads in which GPUs' backward passes run
        torch._C._vmapmode_decrement_nesting()
        # an operand that is not of the batch comes back with a first dimension of 1
        opened = [t if t is None else torch._remove_batch_dim(t, level, 1, 0) for t in arguments[:tensors]]
        size = max(t.shape[0] for t in opened if t is not None)
        in_dims = [0 if t is not None and t.shape[0] == size else None for t in opened]
        operands = [t if t is None or d == 0 else t[0] for t, d in zip(opened, in_dims, strict=True)]
        result, dim = of_batch(_Batch(size), in_dims, *operands, *arguments[tensors:])
        return torch._add_batch_dim(result, dim, level)

    _LIBRARY.impl(name, kernel, "Batched")


class _Batch(NamedTuple):
    batch_size: int


_register_batches("spmm", _spmm_of_batch, 3)
_register_batches("sddmm", _sddmm_of_batch, 2)


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
