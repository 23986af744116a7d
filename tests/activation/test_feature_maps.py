"""The output of an embedded convolution: memory of its layer's output, and to autograd no view."""

import pytest
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.activation import feature_maps

needs_extension = pytest.mark.skipif(not es.extension_status().available, reason="without it, they are a view")


def test_they_share_memory_and_move_gradients():
    units = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    maps = feature_maps(units, (2, 3, 4))
    assert torch.equal(maps, units.view(3, 2, 3, 4).permute(0, 3, 1, 2))
    assert maps.data_ptr() == units.data_ptr()
    assert torch.autograd.gradcheck(lambda units: feature_maps(units, (2, 3, 4)), units)
    assert torch.autograd.gradgradcheck(lambda units: feature_maps(units, (2, 3, 4)).square(), units)


def test_all_rows_of_a_jacobian_at_once():
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.Flatten()).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian
    for net in (cnn.to(memory_format=torch.channels_last), es.embed(cnn, x)):
        torch.testing.assert_close(jacobian(net, x, vectorize=True), jacobian(cnn, x))


@needs_extension
def test_writing_into_them_is_seen_in_what_was_saved():
    units = torch.randn(3, 24, requires_grad=True) * 1
    squares = units.square()
    feature_maps(units, (2, 3, 4)).relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.sum().backward()


def _twin():
    return es.embed(nn.Sequential(nn.Conv2d(2, 4, 3)), torch.randn(1, 2, 6, 6))


@needs_extension
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(_twin, (3, 2, 6, 6), id="embedded"),
        pytest.param(lambda: es.SparseLinear(6, 8, density=1.0, block_shape=(2, 2)), (3, 5, 6), id="sequences"),
    ],
)
def test_a_function_in_place_copies_nothing(layer, shape):
    y = nn.functional.relu_(layer()(torch.randn(shape)))
    names = []
    node = y.grad_fn
    while node is not None and "Spmm" not in node.name():
        names.append(node.name())
        node = node.next_functions[0][0]
    assert node is not None
    assert names[0] == "ReluBackward0"
    assert not any("CopySlices" in name for name in names)


def test_who_keeps_the_output_of_the_layer_sees_what_is_done_to_it():
    kept, gradients = [], []
    x = torch.randn(2, 2, 6, 6)
    for inplace in (True, False):
        torch.manual_seed(0)
        twin = es.embed(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace)), x)
        twin[0].linear.register_forward_hook(lambda *arguments: kept.append(arguments[2]))
        leaf = x.clone().requires_grad_()
        twin(leaf)
        y = kept.pop()
        (y if inplace else y.relu()).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)
