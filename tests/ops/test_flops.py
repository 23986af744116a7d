"""``FlopCounterMode`` counts two FLOPs a stored number and row, forward and backward, whenever it is imported."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import efcn_sparse as es


@pytest.mark.parametrize("needs_dx", [False, True])
def test_a_step_is_two_or_three_products(needs_dx):
    pattern = es.BlockPattern.random((48, 64), (8, 16), 0.5, torch.Generator().manual_seed(0))
    layer, x = es.SparseLinear(64, 48, pattern), torch.randn(2, 5, 64, requires_grad=needs_dx)
    product = 2 * 10 * layer.values.numel()
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
        assert counter.get_total_flops() == product
        y.backward(torch.randn_like(y))
    assert counter.get_total_flops() == (2 + needs_dx) * product


def test_updates_in_the_product_are_counted():
    pattern = es.BlockPattern.dense((8, 8), (4, 4))
    values, a, b = torch.zeros(pattern.values_shape), torch.randn(3, 8), torch.randn(3, 8)
    with FlopCounterMode(display=False) as counter:
        es.sddmm(a, b, pattern, out=values)
    assert counter.get_total_flops() == 2 * 3 * 64


@pytest.mark.parametrize("first", ["efcn_sparse", pytest.param("torch.utils.flop_counter", marks=pytest.mark.slow)])
def test_either_may_be_imported_first(first):
    program = (
        f"import sys, {first}, efcn_sparse as es, torch\n"
        f"assert ({first!r} == 'efcn_sparse') == ('torch.utils.flop_counter' not in sys.modules)\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "layer = es.SparseLinear(8, 8, es.BlockPattern.dense((8, 8), (4, 4)), bias=False)\n"
        "with FlopCounterMode(display=False) as counter: layer(torch.randn(3, 8))\n"
        "print(counter.get_total_flops())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "384\n", done.stderr
