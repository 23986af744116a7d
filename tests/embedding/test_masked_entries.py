"""Entries of a stored block outside the support stay exactly zero, whatever the optimizer remembers."""

from collections.abc import Callable

import pytest
import torch

from efcn_sparse.embedding import OUTSIDE, EmbeddedConv
from tests.embedding.convolutions import CASES

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["24-channels", "depthwise", "groups-in-wide-blocks", "holes", "blocks-of-pixels"])
def test_stay_zero(name: str, optimizer: str) -> None:
    case = CASES[name]
    blocks = case.block_shape or (16, 16)
    layer = EmbeddedConv.from_conv(case.conv(torch.float32), case.size, case.support, blocks)
    outside = layer.ties.maps[layer.ties.class_of_block.long()] == OUTSIDE
    assert bool(outside.any())
    before = layer.linear.values.detach().clone()
    step = OPTIMIZERS[optimizer](layer.parameters())
    for _ in range(4):
        step.zero_grad()
        layer(case.example(3, torch.float32)).square().mean().backward()
        step.step()
    after = layer.linear.values.detach()
    assert bool((after[outside] == 0).all())
    assert bool((after[~outside] != before[~outside]).any())
