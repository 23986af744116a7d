"""Large results and parameters lie in huge pages: Linux was asked for them."""

from pathlib import Path

import pytest
import torch

import efcn_sparse as es

pytestmark = pytest.mark.skipif(
    not es.extension_status().available or not Path("/sys/kernel/mm/transparent_hugepage").is_dir(),
    reason="the compiled extension asks a Linux that has them",
)


def is_asked_for(tensor):
    """Whether the middle of a tensor's memory has the flag ``hg``."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if head == "VmFlags:" and inside:
            return "hg" in line.split()
        if not head.endswith(":"):
            first, last = (int(address, 16) for address in head.split("-"))
            inside = first <= middle < last
    raise AssertionError("no mapping holds the tensor")


def test_values_gradients_and_outputs():
    pattern = es.BlockPattern.random((2048, 2048), (64, 64), 0.5)
    layer = es.SparseLinear(2048, 2048, pattern)
    y = layer(torch.randn(1024, 2048))
    y.sum().backward()
    for tensor in (layer.values, layer.values.grad, y):
        assert tensor.nbytes >= 1 << 22
        assert is_asked_for(tensor)


def test_values_of_an_embedding_and_outputs_of_relu():
    conv = torch.nn.Conv2d(16, 64, 3)
    twin = es.embed(torch.nn.Sequential(conv, es.ReLU()), torch.randn(1, 16, 24, 24))
    assert is_asked_for(twin[0].linear.values)
    x = torch.randn(1 << 21, requires_grad=True)
    assert is_asked_for(es.ReLU()(x))
