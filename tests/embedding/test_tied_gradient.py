"""Law 4: the gradient of a tied kernel is the sum over positions of the gradients of its copies."""

import pytest
import torch
from hypothesis import given, settings

from efcn_sparse.embedding import EmbeddedConv
from tests.embedding.convolutions import CASES, ConvCase, cases


def _check(case: ConvCase) -> None:
    conv, x = case.conv(), case.example(3)
    layer = EmbeddedConv.from_conv(conv, case.size, case.support, case.block_shape)
    dy = torch.randn_like(conv(x))
    conv(x).backward(dy)
    layer(x).backward(dy)
    entries = layer.ties.maps[layer.ties.class_of_block.long()].long()
    tied = entries >= 0
    grad = layer.linear.values.grad
    assert grad is not None
    summed = torch.zeros(conv.weight.numel(), dtype=torch.float64).index_add_(0, entries[tied], grad[tied])
    torch.testing.assert_close(summed.view_as(conv.weight), conv.weight.grad, rtol=1e-11, atol=1e-11)
    if conv.bias is not None:
        assert layer.linear.bias is not None
        over_positions = layer.linear.bias.grad.view(-1, case.channels[1]).sum(0)
        torch.testing.assert_close(over_positions, conv.bias.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_named(name: str) -> None:
    _check(CASES[name])


@settings(max_examples=40)
@given(cases())
def test_any(case: ConvCase) -> None:
    _check(case)
