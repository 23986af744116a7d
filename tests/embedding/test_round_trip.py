"""Law 3, second half: ``unembed`` undoes ``embed`` bit by bit, and otherwise finds the nearest tied kernel."""

import pytest
import torch
from hypothesis import given, settings

import efcn_sparse as es
from efcn_sparse.embedding import OFF_LOCAL, EmbeddedConv
from tests.embedding.convolutions import CASES, ConvCase, cases

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def _assert_same_bits(case: ConvCase, dtype: torch.dtype) -> None:
    conv = case.conv(dtype)
    layer = EmbeddedConv.from_conv(conv, case.size, case.support, case.block_shape)
    back = layer.to_conv()
    assert type(back) is type(conv)
    for key, tensor in conv.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    assert back.state_dict().keys() == conv.state_dict().keys()
    x = case.example(1, dtype)
    assert torch.equal(back(x), conv(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_named(name: str, dtype: torch.dtype) -> None:
    _assert_same_bits(CASES[name], dtype)


@settings(max_examples=60)
@given(cases())
def test_any(case: ConvCase) -> None:
    _assert_same_bits(case, torch.float32)


def test_entries_that_only_meet_padding_survive_a_checkpoint() -> None:
    case = CASES["only-meets-padding"]
    conv = case.conv()
    layer = EmbeddedConv.from_conv(conv, case.size)
    assert layer.unread_kernel is not None
    assert layer.unread_kernel.numel() == int((layer.ties.counts == 0).sum()) > 0
    other = EmbeddedConv.from_conv(case.conv(), case.size)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.to_conv().weight, conv.weight)


def test_without_such_entries_nothing_is_kept() -> None:
    case = CASES["rgb"]
    layer = EmbeddedConv.from_conv(case.conv(), case.size)
    assert layer.unread_kernel is None
    assert "unread_kernel" not in layer.state_dict()


@pytest.mark.parametrize("name", ["rgb", "24-channels", "depthwise", "blocks-of-pixels", "3d", "holes-filled"])
def test_nearest(name: str) -> None:
    """The residual of a projection is orthogonal to every tied direction: it sums to zero over the copies."""
    case = CASES[name]
    layer = EmbeddedConv.from_conv(case.conv(), case.size, case.support, case.block_shape)
    pattern, ties = layer.linear.pattern, layer.ties
    with torch.no_grad():
        layer.linear.values.copy_(pattern.gather(torch.randn(pattern.shape, dtype=torch.float64)))
        assert layer.linear.bias is not None
        layer.linear.bias.normal_()
    kernel = layer.to_conv().weight.detach().flatten()
    entries = ties.maps[ties.class_of_block.long()].long()
    tied = entries >= 0
    residual = layer.linear.values.detach()[tied] - kernel[entries[tied]]
    sums = torch.zeros_like(kernel).index_add_(0, entries[tied], residual)
    assert float(sums.abs().max()) < 1e-10
    assert float(residual.norm()) > 1.0
    by_position = layer.linear.bias.detach().view(-1, case.channels[1])
    torch.testing.assert_close(layer.to_conv().bias.detach(), by_position.mean(0), rtol=1e-12, atol=1e-12)


def test_off_local_weights_do_not_matter() -> None:
    case = CASES["3d"]
    conv = case.conv()
    layer = EmbeddedConv.from_conv(conv, case.size, case.support, case.block_shape)
    off_local = layer.ties.maps[layer.ties.class_of_block.long()] == OFF_LOCAL
    with torch.no_grad():
        layer.linear.values[off_local] = 1e6
    assert bool(off_local.any())
    assert torch.equal(layer.to_conv().weight, conv.weight)


def test_the_model_is_left_alone() -> None:
    conv = torch.nn.Conv2d(2, 4, 3)
    efcn = es.embed(torch.nn.Sequential(conv), torch.randn(1, 2, 5, 5))
    before = {key: tensor.clone() for key, tensor in efcn.state_dict().items()}
    cnn = es.unembed(efcn)
    assert isinstance(efcn[0], EmbeddedConv)
    assert isinstance(cnn[0], torch.nn.Conv2d)
    assert all(torch.equal(before[key], tensor) for key, tensor in efcn.state_dict().items())


def test_nothing_to_unembed() -> None:
    with pytest.raises(ValueError, match=r"^model must hold an embedded convolution, got Linear without one$"):
        es.unembed(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"^model must be an nn.Module, got int$"):
        es.unembed(3)
