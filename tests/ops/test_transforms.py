"""Under torch.func and forward-mode differentiation the operations are those of the dense matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.torch_version import TorchVersion

import efcn_sparse as es
from tests.ops.inputs import randn
from tests.table import BACKENDS, FLOAT64, Row, pattern, rows

P = "masked-ragged"
QUICK = [backend for backend in BACKENDS if not backend.slow]  # what is transformed is not the backend
ROWS = rows(FLOAT64, where=QUICK.__contains__)
Operation = Callable[..., Tensor]


def _operands(row: Row) -> dict[str, Tensor]:
    p = pattern(P, row.device)
    return {
        "x": randn(3, p.shape[1], row=row, seed=1),
        "values": randn(*p.values_shape, row=row, seed=2),
        "bias": randn(p.shape[0], row=row, seed=3),
        "a": randn(3, p.shape[0], row=row, seed=4),
    }


def _operations(row: Row) -> tuple[dict[str, Operation], dict[str, Operation]]:
    """Both operations, and spmm with the transpose, sparse and dense, as functions of their operands."""
    p = pattern(P, row.device)
    sparse: dict[str, Operation] = {
        "spmm": lambda x, values, bias: es.spmm(x, values, p, bias=bias, backend=row.backend),
        "transposed": lambda a, values: es.spmm(a, values, p, transpose=True, backend=row.backend),
        "sddmm": lambda a, x: es.sddmm(a, x, p, backend=row.backend),
    }
    dense: dict[str, Operation] = {
        "spmm": lambda x, values, bias: x @ p.to_dense(values).T + bias,
        "transposed": lambda a, values: a @ p.to_dense(values),
        "sddmm": lambda a, x: p.gather(a.T @ x),
    }
    return sparse, dense


NAMES = {"spmm": ("x", "values", "bias"), "transposed": ("a", "values"), "sddmm": ("a", "x")}


def _numbers(k: int) -> tuple[int, ...]:
    return tuple(range(k))


def _batched(f: Operation, arguments: tuple[Tensor, ...], which: int) -> Tensor:
    in_dims = tuple(1 if k == which else None for k in _numbers(len(arguments)))
    several = [torch.stack([t, 2 * t, t.cos()], 1) if k == which else t for k, t in enumerate(arguments)]
    return vmap(f, in_dims=in_dims)(*several)


TRANSFORMS: dict[str, Callable[[Operation, tuple[Tensor, ...]], Any]] = {
    "grad": lambda f, a: grad(lambda *a: f(*a).sin().sum(), _numbers(len(a)))(*a),
    "vjp": lambda f, a: vjp(f, *a)[1](f(*a).cos()),
    "jvp": lambda f, a: jvp(f, a, tuple(t.cos() for t in a)),
    "jvp of one": lambda f, a: jvp(lambda t: f(a[0], t, *a[2:]), (a[1],), (a[1].cos(),)),
    "jacrev": lambda f, a: jacrev(lambda *a: f(*a).sum(-1), _numbers(len(a)))(*a),
    "jacfwd": lambda f, a: jacfwd(lambda *a: f(*a)[:1, :2], _numbers(len(a)))(*a),
    "hessian": lambda f, a: hessian(lambda st: f(st[0] * a[0], st[1] * a[1], *a[2:]).sin().sum())(a[0][0, :2]),
    "grad of vmap": lambda f, a: grad(lambda *a: _batched(f, a, 0).sin().sum(), _numbers(len(a)))(*a),
    "vmap of grad": lambda f, a: _batched(lambda *a: grad(lambda t: f(a[0], t, *a[2:]).sin().sum())(a[1]), a, 0),
    "forward over forward": lambda f, a: jvp(
        lambda *a: jvp(f, a, tuple(t.cos() for t in a))[1].sin(), a, tuple(t.sin() for t in a)
    ),
    "reverse over forward": lambda f, a: grad(
        lambda t: jvp(lambda s: f(s, *a[1:]), (t,), (t.sin(),))[1].sin().sum()
    )(a[0]),
    "all rows of a Jacobian in one backward pass": lambda f, a: jacobian(f, a, vectorize=True),
    "all columns in one": lambda f, a: jacobian(f, a, vectorize=True, strategy="forward-mode"),
    "all rows of a Hessian in one": lambda f, a: torch.autograd.functional.hessian(
        lambda *a: f(*a).sin().sum(), a, vectorize=True
    ),
    "a batch of one gradient": lambda f, a: torch.autograd.grad(
        f(*(t.requires_grad_() for t in a)), a, f(*a).detach().cos()[None], is_grads_batched=True
    ),
} | {f"vmap of {k}": lambda f, a, k=k: _batched(f, a, min(k, len(a) - 1)) for k in range(3)}  # fmt: skip

# They call the operations hundreds of times, on one backend that is here: derivatives and batches are the same for all.
LONG = {
    "jacrev",
    "jacfwd",
    "hessian",
    "all rows of a Jacobian in one backward pass",
    "all columns in one",
    "all rows of a Hessian in one",
}
LAST = rows(FLOAT64, where=[backend for backend in QUICK if not backend.missing()][-1:].__contains__)


@pytest.mark.parametrize("operation", NAMES)
@pytest.mark.parametrize(
    ("transform", "row"),
    [
        pytest.param(transform, *row.values, id=f"{transform}-{row.id}", marks=row.marks)
        for transform in TRANSFORMS
        for row in (LAST if transform in LONG else ROWS)
    ],
)
def test_as_the_dense_matrix(row: Row, operation: str, transform: str) -> None:
    sparse, dense = _operations(row)
    arguments = tuple(_operands(row)[name] for name in NAMES[operation])
    got = TRANSFORMS[transform](sparse[operation], arguments)
    torch.testing.assert_close(got, TRANSFORMS[transform](dense[operation], arguments))


@pytest.mark.parametrize(
    ("transform", "operation"),
    [("grad", "spmm"), ("vmap of grad", "transposed"), ("jvp", "sddmm"), ("hessian", "spmm"), ("hessian", "sddmm")],
)
def test_compiled(operation: str, transform: str) -> None:
    row = Row("auto", "cpu", FLOAT64)
    sparse, dense = _operations(row)
    arguments = tuple(_operands(row)[name] for name in NAMES[operation])
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: TRANSFORMS[transform](sparse[operation], a), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments), TRANSFORMS[transform](dense[operation], arguments))


def test_compiled_for_patterns_of_several_sizes() -> None:
    """Torch makes sizes that differ from call to call symbols; those of a pattern stay numbers."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda a, x, values, p: (es.spmm(x, values, p), es.sddmm(a, x, p)), backend="eager")
    for side in (24, 40, 48):
        p = es.BlockPattern.random((8, side), (8, 8), 1.0)
        a, x, values = torch.randn(4, 8), torch.randn(4, side), torch.randn(p.values_shape)
        torch.testing.assert_close(compiled(a, x, values, p), (es.spmm(x, values, p), es.sddmm(a, x, p)))


@pytest.mark.skipif(TorchVersion(torch.__version__) >= "2.14", reason="Inductor of torch 2.14 takes it")
def test_what_would_end_the_process_is_not_compiled() -> None:
    """A Hessian-vector product that reads a trainable bias; with nothing to record, or detached, it is right."""
    o, p = _operands(Row("auto", "cpu", FLOAT64)), pattern(P)
    bias = o["bias"].requires_grad_()

    def product(values: Tensor) -> Tensor:
        loss = grad(lambda values: es.spmm(o["x"], values, p, bias=bias).square().sum())
        return jvp(loss, (values,), (values.cos(),))[1]

    torch._dynamo.reset()
    compiled = torch.compile(product, backend="aot_eager")
    with pytest.raises(RuntimeError, match="must not read tensors that require grad from outside"):
        compiled(o["values"])
    with torch.no_grad():
        torch.testing.assert_close(compiled(o["values"]), product(o["values"]))
    bias.requires_grad_(False)
    torch.testing.assert_close(compiled(o["values"]), product(o["values"]))


@pytest.mark.parametrize("row", ROWS)
def test_without_gradient_inside_and_around_a_transform(row: Row) -> None:
    """What ``torch.no_grad`` encloses is constant to every transform around it."""
    sparse, dense = _operations(row)
    o = _operands(row)

    def gradient(f: Operation) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            with torch.no_grad():
                constant = f(x, o["values"], o["bias"])
            return (constant * f(x, o["values"], o["bias"])).sum()

        return grad(lambda x: grad(loss)(x).sin().sum())(o["x"])

    torch.testing.assert_close(gradient(sparse["spmm"]), gradient(dense["spmm"]))


@pytest.mark.parametrize("row", ROWS)
def test_forward_mode_without_torch_func(row: Row) -> None:
    sparse, dense = _operations(row)
    o = _operands(row)
    with forward_ad.dual_level():
        x, values = (forward_ad.make_dual(o[name], o[name].cos()) for name in ("x", "values"))
        tangents = [forward_ad.unpack_dual(f["spmm"](x, values, o["bias"])).tangent for f in (sparse, dense)]
    torch.testing.assert_close(*tangents)


def test_a_layer_in_an_ensemble() -> None:
    p = pattern(P)
    layers = [es.SparseLinear(p.shape[1], p.shape[0], p, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = torch.randn(3, 5, p.shape[1], dtype=torch.float64)
    got = vmap(lambda p, b, x: functional_call(layers[0], (p, b), (x,)))(parameters, buffers, x)
    torch.testing.assert_close(got, torch.stack([layer(rows) for layer, rows in zip(layers, x, strict=True)]))


def test_gradients_of_each_sample_under_autocast() -> None:
    p = pattern(P)
    layer, x = es.SparseLinear(p.shape[1], p.shape[0], p), torch.randn(4, p.shape[1])

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return functional_call(layer, parameters, (x,)).float().square().sum()

    got = vmap(grad(loss), in_dims=(None, 0))(dict(layer.named_parameters()), x)
    for k in range(4):
        layer.zero_grad()
        loss(dict(layer.named_parameters()), x[k]).backward()
        assert got["values"].dtype == torch.float32
        torch.testing.assert_close(got["values"][k], layer.values.grad, rtol=2e-2, atol=2e-2)
