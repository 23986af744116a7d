"""The two operations as users call them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

import efcn_sparse.ops.contract  # noqa: F401  # defines the operators
from efcn_sparse.extension import compiled
from efcn_sparse.ops.checks import (
    DTYPES,
    autocast_is_on,
    check_alike,
    check_backend,
    check_features,
    check_floating,
    check_out,
    check_pattern,
    check_scaling,
)
from efcn_sparse.ops.select import resolve
from efcn_sparse.pattern import BlockPattern

_spmm = torch.ops.efcn_sparse.spmm.default


def spmm(
    x: Tensor,
    values: Tensor,
    pattern: BlockPattern,
    *,
    transpose: bool = False,
    bias: Tensor | None = None,
    backend: str = "auto",
    alpha: float = 1.0,
    beta: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Sparse × dense: ``x Wᵀ + bias``, or with ``transpose`` ``x W + bias``. Differentiable to any order and
    in both modes, and open to the transforms of :mod:`torch.func`.

    Args:
        x: ``[..., in_features]`` (``[..., out_features]`` with ``transpose``), any strides.
        values: ``[nnz_blocks, block_rows, block_cols]``, of the dtype of ``x``; entries outside the support of
            ``pattern`` count as zeros, which times infinity or NaN in ``x`` are NaN.
        pattern: which blocks of W are stored.
        bias: ``[out_features]`` (``[in_features]`` with ``transpose``).
        backend: ``"auto"``, or the name of a backend, which is then used or refused.
        alpha, beta, out: with ``out`` given, which must be contiguous, ``out ← alpha · result + beta · out`` in place,
            without gradient.

    Returns:
        ``[..., out_features]`` (``[..., in_features]`` with ``transpose``); ``out`` if it was given.

    Law: ``spmm(x, values, p) == x @ p.to_dense(values).T``. Sums are taken in fp32 (fp64 for fp64), and do not change
    from run to run.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: the named backend cannot run here; or ``out`` was given where a gradient is needed.

    Example:
        >>> import torch, efcn_sparse as es
        >>> pattern = es.BlockPattern.from_mask(torch.tensor([[True, False], [False, True]]), (2, 2), shape=(4, 4))
        >>> values = torch.arange(8.0).view(2, 2, 2)
        >>> es.spmm(torch.ones(1, 4), values, pattern)
        tensor([[ 1.,  5.,  9., 13.]])
    """
    if has_torch_function((x, values, bias, out)):  # a tracer of torch.fx, or a tensor that is more than one
        return handle_torch_function(
            spmm, (x, values, bias, out), x, values, pattern,
            transpose=transpose, bias=bias, backend=backend, alpha=alpha, beta=beta, out=out,
        )  # fmt: skip
    if out is None and alpha == 1.0 and beta == 0.0 and not torch.compiler.is_compiling():
        y = _usual_spmm(x, values, bias, pattern, transpose, backend)
        if y is not None:
            return y
    check_backend(backend)
    check_floating("x", x)
    check_floating("values", values)
    check_pattern(pattern, "x", x)
    pattern.check_values(values)
    out_features, in_features = pattern.shape[::-1] if transpose else pattern.shape
    check_features("x", x, in_features)
    check_alike("x", x, "values", values, may_cast=out is None)
    if bias is not None:
        check_floating("bias", bias)
        if tuple(bias.shape) != (out_features,):
            raise ValueError(f"bias must be [{out_features}], got {list(bias.shape)}")
        check_alike("bias", bias, "x", x, may_cast=out is None)
    rows = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), in_features)
    if out is None:
        check_scaling(alpha, beta)
        y = _spmm(rows, values, bias, pattern.structure, pattern.shape, transpose, _chosen(backend, x))
        # no view to autograd: a function in place after it would copy it twice in the backward pass
        return y if x.dim() == 2 else torch.ops.aten._unsafe_view(y, (*x.shape[:-1], out_features))
    check_out(out, (*x.shape[:-1], out_features), {"x": x, "values": values, "bias": bias})
    y = out if out.dim() == 2 else out.view(rows.shape[0], out_features)
    torch.ops.efcn_sparse.spmm_(
        y, rows, values, bias, pattern.structure, pattern.shape, transpose, alpha, beta, backend
    )
    _mark_written(out)
    return out


def sddmm(
    a: Tensor,
    b: Tensor,
    pattern: BlockPattern,
    *,
    backend: str = "auto",
    alpha: float = 1.0,
    beta: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """Sampled dense × dense: ``aᵀ b`` at the stored blocks, summed over all leading dimensions. Differentiable
    as :func:`spmm` is.

    With ``a = dy`` and ``b = x`` this is the gradient of ``values``; with ``out=values``, ``alpha=-lr`` and
    ``beta = 1 - lr · weight_decay`` it is a step of SGD that never holds a gradient.

    Args:
        a: ``[..., out_features]``, any strides.
        b: ``[..., in_features]``, with the leading dimensions and dtype of ``a``.
        pattern: which blocks are wanted.
        backend: ``"auto"``, or the name of a backend, which is then used or refused.
        alpha, beta, out: with ``out`` given, which must be contiguous, ``out ← alpha · result + beta · out`` in place,
            without gradient; entries outside the support become zero. ``out`` has the dtype of ``a``, or is fp32 where
            that has 16 bits: sums are then stored as they are, without a rounding to 16 bits.

    Returns:
        ``[nnz_blocks, block_rows, block_cols]``, zero outside the support; ``out`` if it was given.

    Law: ``sddmm(a, b, p) == p.gather(a.T @ b)``, and ``<sddmm(a, b), v> == <a, spmm(b, v)>``.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit.
        RuntimeError: the named backend cannot run here; or ``out`` was given where a gradient is needed.

    Example:
        >>> import torch, efcn_sparse as es
        >>> pattern = es.BlockPattern.from_mask(torch.tensor([[True, False]]), (1, 2), shape=(1, 4))
        >>> es.sddmm(torch.tensor([[2.0]]), torch.arange(4.0).view(1, 4), pattern)
        tensor([[[0., 2.]]])
    """
    if has_torch_function((a, b, out)):
        return handle_torch_function(
            sddmm, (a, b, out), a, b, pattern, backend=backend, alpha=alpha, beta=beta, out=out
        )
    check_backend(backend)
    check_floating("a", a)
    check_floating("b", b)
    check_pattern(pattern, "a", a)
    check_features("a", a, pattern.shape[0])
    check_features("b", b, pattern.shape[1])
    check_alike("b", b, "a", a, may_cast=out is None)
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(f"b must have the leading dimensions of a, {list(a.shape[:-1])}, got {list(b.shape[:-1])}")
    batch = math.prod(a.shape[:-1])
    left = a if a.dim() == 2 else a.reshape(batch, pattern.shape[0])
    right = b if b.dim() == 2 else b.reshape(batch, pattern.shape[1])
    if out is None:
        check_scaling(alpha, beta)
        backend = _chosen(backend, a)
        return torch.ops.efcn_sparse.sddmm(left, right, pattern.structure, pattern.shape, pattern.block_shape, backend)
    check_out(out, pattern.values_shape, {"a": a, "b": b}, may_be_fp32=True)
    torch.ops.efcn_sparse.sddmm_(out, left, right, pattern.structure, pattern.shape, alpha, beta, backend)
    _mark_written(out)
    return out


def _usual_spmm(x: Any, values: Any, bias: Any, pattern: Any, transpose: bool, backend: Any) -> Tensor | None:
    """The product of plain CPU tensors that fit, by one call of the extension; None where checks have to say more."""
    if type(pattern) is not BlockPattern or type(backend) is not str or not isinstance(x, Tensor):
        return None
    if x.dtype not in DTYPES or resolve(backend, x.device, x.dtype) != "cpu":
        return None
    return compiled().usual_spmm(
        x, values, bias, pattern.structure, pattern.shape, pattern.block_shape, bool(transpose)
    )


def _chosen(backend: str, operand: Tensor) -> str:
    """The backend that runs, by name; as it was given where only the operator will know, compiled or under autocast."""
    if torch.compiler.is_compiling() or autocast_is_on(operand):
        return backend
    check_backend(backend)
    return resolve(backend, operand.device, operand.dtype)


def _mark_written(out: Tensor) -> None:
    """Let autograd notice, as after any in-place operation of torch, that what it saved of ``out`` is gone."""
    if not torch.compiler.is_compiling() and not out.is_inference():
        torch.autograd.graph.increment_version(out)
