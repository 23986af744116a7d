"""An embedded convolution is an ordinary module: compiled, copied, saved, moved and cast like any other."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

import efcn_sparse as es
from efcn_sparse.embedding import ConvGeometry, EmbeddedConv
from efcn_sparse.models import vanilla_cnn
from tests.embedding.convolutions import CASES


def _layer(name: str = "24-channels", dtype: torch.dtype = torch.float32) -> EmbeddedConv:
    case = CASES[name]
    return EmbeddedConv.from_conv(case.conv(dtype), case.size, case.support, case.block_shape)


def _x(name: str = "24-channels", batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return CASES[name].example(batch, dtype)


@pytest.mark.parametrize("name", ["rgb", "1d", "3d"])
def test_unbatched(name: str) -> None:
    conv = CASES[name].conv()
    layer = EmbeddedConv.from_conv(conv, CASES[name].size)
    x = _x(name, 1, torch.float64)[0]
    assert layer(x).shape == conv(x).shape
    torch.testing.assert_close(layer(x), conv(x))


def test_empty_batch() -> None:
    case = CASES["rgb"]
    conv, x = case.conv(), case.example(0)
    assert EmbeddedConv.from_conv(conv, case.size)(x).shape == conv(x).shape


def test_memory_formats() -> None:
    layer, x = _layer(), _x()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(layer(x.flip(0)[::1].repeat_interleave(2, 0)[::2].flip(0)), y)


def test_channels_last_is_not_copied() -> None:
    layer = _layer()
    x = _x().to(memory_format=torch.channels_last)
    seen = []
    layer.linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    layer(x)
    layer(layer_input := x[:1])  # one image: its batch stride means nothing
    assert seen[0].data_ptr() == x.data_ptr()
    assert seen[1].data_ptr() == layer_input.data_ptr()


def test_chained_layers_hand_over_without_a_copy() -> None:
    net = es.embed(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)), torch.randn(1, 2, 8, 8))
    made, taken = [], []
    net[0].register_forward_hook(lambda module, inputs, output: made.append(output.data_ptr()))
    net[1].linear.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0].data_ptr()))
    net(torch.randn(3, 2, 8, 8))
    assert made == taken


def test_compiled_with_backward() -> None:
    net = es.embed(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)),
        torch.randn(1, 3, 8, 8),
    )
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    y = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    y.square().sum().backward()
    torch.testing.assert_close(y, expected)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


def test_copies_and_pickles() -> None:
    layer, x = _layer("only-meets-padding"), _x("only-meets-padding")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert torch.equal(other.to_conv().weight, layer.to_conv().weight)
        with torch.no_grad():
            other.linear.values.zero_()
    assert bool((layer.linear.values != 0).any())


def test_state_dict_through_files() -> None:
    layer = _layer("only-meets-padding")
    keys = {"unread_kernel", "linear.values", "linear.bias", "linear.crow_indices", "linear.col_indices"}
    assert set(layer.state_dict()) == keys
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    contiguous = {key: tensor.contiguous() for key, tensor in layer.state_dict().items()}
    for state in (torch.load(stream, weights_only=True), safetensors.torch.load(safetensors.torch.save(contiguous))):
        other = _layer("only-meets-padding")
        other.load_state_dict(state)
        assert torch.equal(other.to_conv().weight, layer.to_conv().weight)


def test_another_embedding_does_not_load() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    layer = EmbeddedConv.from_conv(conv, (6, 6))
    blocks = layer.linear.pattern.block_shape
    others = (
        EmbeddedConv.from_conv(conv, (6, 6), es.Dilated(1)),
        EmbeddedConv.from_conv(conv, (6, 6), block_shape=(2, 2)),
        EmbeddedConv.from_conv(nn.Conv2d(4, 4, 3, padding=1, groups=2), (6, 6), block_shape=blocks),
    )
    for other in others:
        with pytest.raises(ValueError, match=r"^linear: the state dict's pattern must be \w+, got "):
            layer.load_state_dict(other.state_dict())


def test_casts() -> None:
    layer = _layer("only-meets-padding").to(torch.float64)
    assert layer.unread_kernel is not None
    assert layer.linear.values.dtype == layer.unread_kernel.dtype == torch.float64
    assert layer.to_conv().weight.dtype == torch.float64
    assert layer(_x("only-meets-padding", dtype=torch.float64)).dtype == torch.float64
    assert layer.bfloat16()(_x("only-meets-padding", dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_autocast() -> None:
    layer = _layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(_x()).dtype == torch.bfloat16


def test_from_scratch() -> None:
    geometry = ConvGeometry.of(CASES["rgb"].conv(), (8, 8))
    layer = EmbeddedConv(geometry, es.Dilated(1), bias=False)
    assert layer.linear.bias is None
    assert layer(torch.randn(2, 3, 8, 8)).shape == (2, 64, *geometry.output_size)
    assert "support=dilated1" in repr(layer)
    on_meta = EmbeddedConv(geometry, device="meta")
    assert on_meta.linear.values.is_meta
    assert on_meta.to_empty(device="cpu")(torch.randn(2, 3, 8, 8)).shape == (2, 64, *geometry.output_size)


def test_the_generator_is_left_alone() -> None:
    model = vanilla_cnn()
    state = torch.get_rng_state()
    es.unembed(es.embed(model, torch.zeros(1, 3, 32, 32)))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_not_its_own_is_named_in_words() -> None:
    """A CNN's state dict, and an input of another dtype; nothing is loaded without a word with ``strict=False``."""
    cnn, x = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3)), torch.randn(1, 2, 5, 5)
    twin = es.embed(cnn, x)
    words = r"^state_dict must be of an embedded model, got the kernel of a convolution, 0.weight: load it into the CNN"
    for strict in (True, False):
        with pytest.raises(ValueError, match=words):
            twin.load_state_dict(cnn.state_dict(), strict=strict)
    with pytest.raises(TypeError, match=r"^x must have the dtype of values, torch.float32, got torch.float64$"):
        twin(x.double())


def test_no_convolution_has_such_a_padding() -> None:
    geometry = ConvGeometry(2, 2, 1, (6,), (3,), (2,), ((0, 1),), (1,))
    layer = EmbeddedConv(geometry)
    assert layer(torch.randn(1, 2, 6)).shape == (1, 2, 3)
    with pytest.raises(ValueError, match=r"^geometry must be that of an nn.Conv1d, got padding \[\(0, 1\)\]$"):
        layer.to_conv()
    border = ConvGeometry.of(torch.nn.Conv1d(2, 2, 3, padding=2, padding_mode="circular"), (6,))
    assert EmbeddedConv(border).to_conv().padding_mode == "circular"
    transposed = ConvGeometry.of(torch.nn.ConvTranspose1d(2, 4, 3, 2, 1, 1, groups=2), (6,))
    assert ConvGeometry.of(EmbeddedConv(transposed).to_conv(), (6,)) == transposed
    with pytest.raises(ValueError, match=r"^output_padding must be smaller than stride or at most padding, got \[1\]$"):
        ConvGeometry.of(torch.nn.ConvTranspose1d(2, 2, 3, output_padding=1, dilation=2), (6,))


@pytest.mark.parametrize("support", [es.Dilated(1), es.LowRank(2)])
def test_traced_symbolically(support: es.Local) -> None:
    x = torch.randn(3, 2, 6, 6)
    net = es.embed(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), x, support=support)
    for model in (net, net[0]):
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(x), model(x))
        assert torch.equal(traced(x[:1]), model(x[:1]))
