"""Bad input to spmm and sddmm: refused with a message that names argument, expectation and what came."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests.refused import BadCall, assert_refused

P = es.BlockPattern.dense((6, 8), (3, 4))
X, V, B, DY = torch.randn(5, 8), torch.randn(4, 3, 4), torch.randn(6), torch.randn(5, 6)
OUT, GRAD = torch.empty(5, 6), torch.empty(4, 3, 4)
META = torch.device("meta")
SHARED = torch.randn(5, 30)

BAD: dict[str, BadCall] = {
    "x-is-a-list": (lambda: es.spmm([1.0], V, P), TypeError, "x must be a tensor, got list"),
    "x-of-integers": (
        lambda: es.spmm(X.long(), V, P),
        TypeError,
        "x must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    "x-sparse": (
        lambda: es.spmm(X.to_sparse(), V, P),
        TypeError,
        "x must be a dense (strided) tensor, got torch.sparse_coo",
    ),
    "x-nested": (
        lambda: es.spmm(torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged), V, P),
        TypeError,
        "x must be a dense (strided) tensor, got a nested tensor",
    ),
    "values-sparse": (
        lambda: es.spmm(X, V.to_sparse(), P),
        TypeError,
        "values must be a dense (strided) tensor, got torch.sparse_coo",
    ),
    "x-complex": (
        lambda: es.spmm(X.to(torch.complex64), V, P),
        TypeError,
        "x must be float64, float32, bfloat16 or float16, got torch.complex64",
    ),
    "x-float8": (
        lambda: es.spmm(X.to(torch.float8_e4m3fn), V, P),
        TypeError,
        "x must be float64, float32, bfloat16 or float16, got torch.float8_e4m3fn",
    ),
    "x-scalar": (lambda: es.spmm(torch.tensor(1.0), V, P), ValueError, "x must be [..., 8], got []"),
    "x-too-narrow": (lambda: es.spmm(X[:, :7], V, P), ValueError, "x must be [..., 8], got [5, 7]"),
    "x-for-the-other-side": (lambda: es.spmm(DY, V, P), ValueError, "x must be [..., 8], got [5, 6]"),
    "x-transposed": (lambda: es.spmm(X, V, P, transpose=True), ValueError, "x must be [..., 6], got [5, 8]"),
    "x-on-meta-only": (
        lambda: es.spmm(X.to(META), V, P),
        ValueError,
        "x must be on the device of values, cpu, got meta",
    ),
    "values-is-a-list": (lambda: es.spmm(X, [V], P), TypeError, "values must be a tensor, got list"),
    "values-of-integers": (
        lambda: es.spmm(X, V.int(), P),
        TypeError,
        "values must be float64, float32, bfloat16 or float16, got torch.int32",
    ),
    "values-too-few": (lambda: es.spmm(X, V[:3], P), ValueError, "values must be [4, 3, 4], got [3, 3, 4]"),
    "values-flat": (lambda: es.spmm(X, V.flatten(), P), ValueError, "values must be [4, 3, 4], got [48]"),
    "values-transposed": (lambda: es.spmm(X, V.mT, P), ValueError, "values must be [4, 3, 4], got [4, 4, 3]"),
    "values-of-another-dtype": (
        lambda: es.spmm(X, V.double(), P),
        TypeError,
        "x must have the dtype of values, torch.float64, got torch.float32",
    ),
    "pattern-is-a-mask": (
        lambda: es.spmm(X, V, torch.ones(6, 8)),
        TypeError,
        "pattern must be a BlockPattern, got Tensor",
    ),
    "bias-is-a-number": (lambda: es.spmm(X, V, P, bias=1.0), TypeError, "bias must be a tensor, got float"),
    "bias-too-long": (lambda: es.spmm(X, V, P, bias=torch.zeros(8)), ValueError, "bias must be [6], got [8]"),
    "bias-transposed": (lambda: es.spmm(DY, V, P, transpose=True, bias=B), ValueError, "bias must be [8], got [6]"),
    "bias-two-dimensional": (lambda: es.spmm(X, V, P, bias=B[None]), ValueError, "bias must be [6], got [1, 6]"),
    "bias-of-another-dtype": (
        lambda: es.spmm(X, V, P, bias=B.bfloat16()),
        TypeError,
        "bias must have the dtype of x, torch.float32, got torch.bfloat16",
    ),
    "bias-on-another-device": (
        lambda: es.spmm(X, V, P, bias=B.to(META)),
        ValueError,
        "bias must be on the device of x, cpu, got meta",
    ),
    "backend-is-no-string": (lambda: es.spmm(X, V, P, backend=3), TypeError, "backend must be a string, got int"),
    "alpha-without-out": (
        lambda: es.spmm(X, V, P, alpha=2.0),
        ValueError,
        "alpha and beta need out to accumulate into, got alpha=2.0, beta=0.0 and out=None",
    ),
    "out-is-a-list": (lambda: es.spmm(X, V, P, out=[]), TypeError, "out must be a tensor, got list"),
    "out-too-small": (lambda: es.spmm(X, V, P, out=OUT[:4]), ValueError, "out must be [5, 6], got [4, 6]"),
    "out-transposed": (
        lambda: es.spmm(X, V, P, out=torch.empty(6, 5).T),
        ValueError,
        "out must be contiguous, got strides [1, 5]",
    ),
    "out-of-another-dtype": (
        lambda: es.spmm(X, V, P, out=OUT.double()),
        TypeError,
        "out must have the dtype of x, torch.float32, got torch.float64",
    ),
    "out-on-another-device": (
        lambda: es.spmm(X, V, P, out=OUT.to(META)),
        ValueError,
        "out must be on the device of x, cpu, got meta",
    ),
    "out-is-x": (
        lambda: es.spmm(SHARED[:, :8], V, P, out=SHARED.view(-1)[:30].view(5, 6)),
        ValueError,
        "out must not share memory with x",
    ),
    "out-is-values": (
        lambda: es.spmm(X, V, P, out=V.view(-1)[:30].view(5, 6)),
        ValueError,
        "out must not share memory with values",
    ),
    "out-with-a-gradient": (
        lambda: es.spmm(X, V.clone().requires_grad_(), P, out=OUT),
        RuntimeError,
        "out is written in place without gradient: call under torch.no_grad()",
    ),
    "a-is-a-list": (lambda: es.sddmm([1.0], X, P), TypeError, "a must be a tensor, got list"),
    "a-of-integers": (
        lambda: es.sddmm(DY.long(), X, P),
        TypeError,
        "a must be float64, float32, bfloat16 or float16, got torch.int64",
    ),
    "a-and-b-swapped": (lambda: es.sddmm(X, DY, P), ValueError, "a must be [..., 6], got [5, 8]"),
    "b-is-a-list": (lambda: es.sddmm(DY, [1.0], P), TypeError, "b must be a tensor, got list"),
    "b-too-wide": (lambda: es.sddmm(DY, torch.randn(5, 9), P), ValueError, "b must be [..., 8], got [5, 9]"),
    "b-of-another-batch": (
        lambda: es.sddmm(DY, X[:4], P),
        ValueError,
        "b must have the leading dimensions of a, [5], got [4]",
    ),
    "b-of-another-rank": (
        lambda: es.sddmm(DY[None], X, P),
        ValueError,
        "b must have the leading dimensions of a, [1, 5], got [5]",
    ),
    "b-of-another-dtype": (
        lambda: es.sddmm(DY, X.half(), P),
        TypeError,
        "b must have the dtype of a, torch.float32, got torch.float16",
    ),
    "b-on-another-device": (
        lambda: es.sddmm(DY, X.to(META), P),
        ValueError,
        "b must be on the device of a, cpu, got meta",
    ),
    "sddmm-pattern": (lambda: es.sddmm(DY, X, None), TypeError, "pattern must be a BlockPattern, got NoneType"),
    "sddmm-backend": (lambda: es.sddmm(DY, X, P, backend=None), TypeError, "backend must be a string, got NoneType"),
    "sddmm-beta-without-out": (
        lambda: es.sddmm(DY, X, P, beta=1.0),
        ValueError,
        "alpha and beta need out to accumulate into, got alpha=1.0, beta=1.0 and out=None",
    ),
    "sddmm-out-too-small": (
        lambda: es.sddmm(DY, X, P, out=GRAD[:3]),
        ValueError,
        "out must be [4, 3, 4], got [3, 3, 4]",
    ),
    "sddmm-out-transposed": (
        lambda: es.sddmm(DY, X, P, out=torch.empty(4, 4, 3).mT),
        ValueError,
        "out must be contiguous, got strides [12, 1, 3]",
    ),
    "sddmm-out-of-another-dtype": (
        lambda: es.sddmm(DY, X, P, out=GRAD.double()),
        TypeError,
        "out must have the dtype of a, torch.float32, got torch.float64",
    ),
    "sddmm-out-is-b": (
        lambda: es.sddmm(DY, SHARED.view(-1)[40:80].view(5, 8), P, out=SHARED.view(-1)[:48].view(4, 3, 4)),
        ValueError,
        "out must not share memory with b",
    ),
    "sddmm-out-with-a-gradient": (
        lambda: es.sddmm(DY, X, P, out=GRAD.clone().requires_grad_()),
        RuntimeError,
        "out is written in place without gradient: call under torch.no_grad()",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    tensors = (X, V, B, DY, OUT, GRAD, SHARED)
    before = [tensor.clone() for tensor in tensors]
    assert_refused(*BAD[case])
    for now, then in zip(tensors, before, strict=True):
        assert torch.equal(now.view(torch.int32), then.view(torch.int32)), "changed before it was refused"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_pattern_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"pattern must be on the device of x, cuda:0, got cpu; use pattern.to\(...\)"):
        es.spmm(X.cuda(), V.cuda(), P)


def test_neighbors_in_one_buffer_may_be_written() -> None:
    buffer = torch.randn(100)
    x, out = buffer[:40].view(5, 8), buffer[40:70].view(5, 6)
    expected = es.spmm(x, V, P)
    assert torch.equal(es.spmm(x, V, P, out=out), expected)


def test_out_in_inference_mode() -> None:
    with torch.inference_mode():
        assert torch.equal(es.spmm(X, V, P, out=torch.empty(5, 6)), es.spmm(X, V, P))
