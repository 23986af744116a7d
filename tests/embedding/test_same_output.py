"""Law 3, first half: an embedded convolution computes what the convolution computes."""

import pytest
import torch
from hypothesis import given, settings

import efcn_sparse as es
from efcn_sparse.embedding import EmbeddedConv
from tests.embedding.convolutions import CASES, ConvCase, cases


def _embedded(case: ConvCase, conv: torch.nn.Module) -> EmbeddedConv:
    layer = es.embed(
        conv, case.example(1, conv.weight.dtype), layers={"": dict(support=case.support, block_shape=case.block_shape)}
    )
    assert isinstance(layer, EmbeddedConv)
    return layer


@pytest.mark.parametrize("name", CASES)
def test_named(name: str) -> None:
    case = CASES[name]
    conv, x = case.conv(), case.example(3)
    torch.testing.assert_close(_embedded(case, conv)(x), conv(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=80)
@given(cases())
def test_any(case: ConvCase) -> None:
    conv, x = case.conv(), case.example(2)
    torch.testing.assert_close(_embedded(case, conv)(x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("name", ["rgb", "24-channels", "depthwise"])
def test_lower_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = CASES[name]
    conv, x = case.conv(dtype), case.example(3, dtype)
    y = _embedded(case, conv)(x)
    assert y.dtype == dtype
    exact = conv.double()(x.double())
    assert float((y.double() - exact).detach().norm() / exact.detach().norm()) < tolerance


@pytest.mark.parametrize("name", ["rgb", "1d", "3d", "no-bias"])
def test_gradients_of_the_input(name: str) -> None:
    case = CASES[name]
    conv, x = case.conv(), case.example(2).requires_grad_()
    layer = _embedded(case, conv)
    dy = torch.randn_like(conv(x))
    (expected,) = torch.autograd.grad(conv(x), x, dy)
    (got,) = torch.autograd.grad(layer(x), x, dy)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
