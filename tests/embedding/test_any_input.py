"""What holds on the example holds in training and at any batch size, for models that take any arguments."""

import random
import re
import sys
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import efcn_sparse as es
from efcn_sparse.embedding import plan


class Merging(nn.Module):
    """Views that merge batch and channels, as in siamese correlation; where, is said by ``when``."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.conv, self.norm, self.when, self.calls = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), when, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.conv(x)
        if self.when == "always" or (self.when == "training") == self.training:
            y = y.view(1, -1, *y.shape[2:]).view(y.shape)
        return self.norm(y + numpy.random.rand() + random.random())  # noqa: NPY002  # the generator whose state must stay


@pytest.mark.parametrize("when", ["always", "training", "evaluation"])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_size_and_mode(when: str, batch: int) -> None:
    model = Merging(when)
    state, python = numpy.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    twin = es.embed(model, torch.randn(batch, 2, 6, 6))
    assert (numpy.random.get_state()[1] == state).all()  # noqa: NPY002
    assert random.getstate() == python
    assert model.calls == twin.calls == int(model.norm.num_batches_tracked) == int(twin.norm.num_batches_tracked) == 0
    for module in (twin.train(), twin.eval()):
        module(torch.randn(2, 2, 6, 6)).sum().backward()
        module(torch.randn(1, 2, 6, 6)).sum().backward()


class AnyArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.idle = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(
        self, batch: dict[str, Any], names: list[str], *, scale: float = 0.0, extra: Any = None
    ) -> dict[str, Any]:
        y = self.conv(batch["image"]) * scale
        return {name: self.head(y) if self.training else y for name in names} | {"extra": extra}


def test_arguments_of_any_kind() -> None:
    model = AnyArguments()
    x = torch.randn(2, 2, 6, 6)
    given = dict(example_inputs=({"image": x}, ["a"]), example_kwargs={"scale": 2.0}, leave_uncalled=True)
    twin = es.embed(model, **given)
    assert [type(module).__name__ for module in (twin.conv, twin.head, twin.idle)] == [
        "EmbeddedConv", "EmbeddedConv", "Conv2d",
    ]  # fmt: skip
    assert [layer.name for layer in plan(model, **given).layers] == ["conv", "head"]
    torch.testing.assert_close(twin({"image": x}, ["a"], scale=2.0), model({"image": x}, ["a"], scale=2.0))
    assert (es.deviation(twin).left, es.deviation(twin).coverage) == (("idle",), 57 / 58)
    for wrong, argument in (
        (dict(example_inputs=x), "example_inputs must be a tuple, got Tensor"),
        (dict(example_kwargs=[1]), "example_kwargs must be a dict, got list"),
        (dict(example_input=x, example_inputs=(x,)), "example_inputs must be None where example_input is given"),
        ({}, "example_input must be a tensor or a tuple of tensors, got NoneType"),
    ):
        with pytest.raises(TypeError, match=f"^{argument}"):
            es.embed(model, **wrong)


def test_a_batch_that_is_not_the_first_side() -> None:
    """The other batch size is tried, and given up where it changes the sizes that convolutions see."""

    class Transposing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.permute(1, 2, 0))  # [time, batch, channels]

    model, x = Transposing(), torch.randn(7, 4, 2)
    torch.testing.assert_close(es.embed(model, x)(x), model(x))


class SameAsTensorFlow(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        sides = []
        for size, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            sides += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


CONVOLUTIONS = {
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=2, stride=2, groups=2, padding_mode="reflect"),
    "replicate": lambda: nn.Conv3d(4, 2, (2, 3, 3), padding=(0, 1, 3), padding_mode="replicate"),
    "circular": lambda: nn.Conv1d(4, 3, 3, padding=2, dilation=2, padding_mode="circular"),
    "reflect, same": lambda: nn.Conv2d(4, 2, 4, padding="same", padding_mode="reflect"),
    "circular, no padding": lambda: nn.Conv2d(4, 2, 3, padding_mode="circular"),
    "same as TensorFlow": lambda: SameAsTensorFlow(4, 6, (4, 3), stride=(1, 2), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, (3, 4), (2, 1), (1, 2), (1, 0), groups=2),
    "transposed, dilated": lambda: nn.ConvTranspose1d(4, 2, 3, 3, 4, 2, dilation=2),
    "transposed, output padding of a stride": lambda: nn.ConvTranspose1d(4, 2, 3, 1, 2, 1, dilation=2),
    "transposed, 3d": lambda: nn.ConvTranspose3d(4, 2, 2, stride=2, bias=False),
    "nothing to pad": lambda: SameAsTensorFlow(4, 2, 2, stride=2, bias=False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("support", [es.Local(), es.Dilated(1), es.Full()], ids=str)
def test_other_convolutions(name: str, support: es.embedding.Support) -> None:
    """Output, gradients and the way back of convolutions that are more than a window with zeros around it."""
    conv = CONVOLUTIONS[name]().double()
    x = torch.randn(2, 4, *(7, 8, 6)[: len(conv.kernel_size)], dtype=torch.float64)
    twin = es.embed(conv, x, support=support)
    y, expected, dy = twin(x.requires_grad_()), conv(x), torch.randn_like(conv(x))
    torch.testing.assert_close(y, expected)
    dx = torch.autograd.grad(expected, (x, conv.weight), dy)
    got = torch.autograd.grad(y, (x, twin.linear.values), dy)
    torch.testing.assert_close(got[0], dx[0])
    summed = torch.zeros(conv.weight.numel(), dtype=torch.float64)
    maps = twin.ties.maps[twin.ties.class_of_block.long()]
    summed.index_add_(0, maps[maps >= 0].long(), got[1][maps >= 0])
    torch.testing.assert_close(summed.view_as(conv.weight), dx[1])
    assert twin.linear.pattern.nnz == support.entries(twin.geometry)
    assert plan(conv, x, support=support).layers[0].stored_blocks == twin.linear.pattern.nnz_blocks
    back = es.unembed(twin)
    assert type(back) is type(conv)
    assert torch.equal(back.weight, conv.weight)
    assert torch.equal(back(x), conv(x))
    assert es.deviation(twin).delta == 0


class UpTo(nn.Module):
    """A transposed convolution that is called for the size of the input, as in a U-Net."""

    def __init__(self, dims: int, kept: int, by_name: bool, output_padding: int = 0) -> None:
        super().__init__()
        down, up = ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d))[dims - 1]
        self.down, self.up = down(2, 4, 3, 2, 1), up(4, 2, 3, 2, 1, output_padding)
        self.kept, self.by_name = kept, by_name

    def forward(self, x: Tensor) -> Tensor:
        y, size = self.down(x), x.shape[-self.kept :]
        return self.up(y, output_size=size) if self.by_name else self.up(y, list(size))


@pytest.mark.parametrize(("output_padding", "by_name"), [(0, True), (1, False)])
@pytest.mark.parametrize(("size", "whole"), [((8,), False), ((7,), True), ((8, 7), False), ((8, 7), True)])
def test_transposed_for_an_output_size(size: tuple[int, ...], whole: bool, output_padding: int, by_name: bool) -> None:
    """The size that torch is given counts, and not ``output_padding``, which comes back as it was."""
    dims = len(size)
    model = UpTo(dims, dims + 2 if whole else dims, by_name, output_padding).double()
    x = torch.randn(3, 2, *size, dtype=torch.float64)
    for support in (es.Local(), es.Dilated(1), es.Full()):
        twin = es.embed(model, x, support=support)
        assert twin.up.geometry.output_size == size
        assert twin.up.geometry.output_padding == tuple(1 - side % 2 for side in size)
        torch.testing.assert_close(twin(x), model(x))
        assert plan(model, x, support=support).layers[1].stored_blocks == twin.up.linear.pattern.nnz_blocks
    back = es.unembed(twin)
    assert back.up.output_padding == model.up.output_padding == (output_padding,) * dims
    assert torch.equal(back(x), model(x))
    path = es.landscape.path(model, twin, lambda net: (net(x) - model(x)).norm().item(), points=3, kind="curvilinear")
    assert max(path.losses) < 1e-12


def test_another_output_size_is_refused() -> None:
    up, x = UpTo(2, 2, True).up, torch.randn(3, 4, 4, 4)
    twin = es.embed(up, x, example_kwargs={"output_size": (8, 7)})
    for good in ([8, 7], (8, 7), torch.Size([8, 7]), [3, 2, 8, 7]):
        torch.testing.assert_close(twin(x, good), up(x, good))
    for good in ([8, 7], (2, 8, 7)):
        torch.testing.assert_close(twin(x[0], output_size=good), up(x[0], output_size=good))
    for bad in ([7, 7], (2, 8, 7), [8], [3, 2, 7, 8]):
        words = f"output_size must be [8, 7], for which the layer was embedded, got {list(bad)}"
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            twin(x, bad)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm(norm: Any) -> None:
    """The present weight is embedded; what comes back is a plain convolution that computes the same."""
    cnn, x = nn.Sequential(norm(nn.Conv2d(2, 3, 3)), nn.Conv2d(3, 3, 1)), torch.randn(2, 2, 6, 6)
    state = {name: tensor.clone() for name, tensor in cnn.state_dict().items()}
    twin = es.embed(cnn, x)
    torch.testing.assert_close(twin(x), cnn(x))
    assert list(dict(twin[0].named_parameters())) == ["linear.values", "linear.bias"]
    assert twin[0].linear.values.requires_grad
    back = es.unembed(twin)
    assert type(back[0]) is nn.Conv2d
    assert torch.equal(back(x), cnn(x))
    assert all(torch.equal(cnn.state_dict()[name], tensor) for name, tensor in state.items())


class Standardized(nn.Conv2d):
    """Weight standardization with a gain, and zeros on both sides, as in timm's BiT and NFNets."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, self.gain, training=True, eps=1e-6).view_as(self.weight)
        bias = None if self.bias is None else 2 * self.bias
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), weight, bias, self.stride, 0, 1, self.groups)


def test_weights_that_a_forward_computes() -> None:
    """As with weight_norm: the present weight is embedded; what comes back is a plain convolution."""
    cnn = nn.Sequential(Standardized(3, 4, 3, stride=2), nn.ReLU(), Standardized(4, 6, 3, groups=2, bias=False))
    cnn[2].weight.requires_grad_(False)
    cnn, x = cnn.double(), torch.randn(2, 3, 7, 8, dtype=torch.float64)
    state = {name: tensor.clone() for name, tensor in cnn.state_dict().items()}
    twin = es.embed(cnn, x, support=es.Dilated(1))
    torch.testing.assert_close(twin(x), cnn(x))
    assert all(parameter.requires_grad for parameter in twin.parameters())  # the gain of the second one learns
    assert es.deviation(twin).delta == 0
    planned = plan(cnn, x, support=es.Dilated(1))
    assert [layer.stored_blocks for layer in planned.layers] == [
        twin[i].linear.pattern.nnz_blocks for i in (0, 2)
    ]  # fmt: skip
    assert [layer.stored_blocks for layer in plan(cnn.to("meta"), x, support=es.Dilated(1)).layers] == [
        layer.stored_blocks for layer in planned.layers
    ]
    back = es.unembed(twin)
    assert [type(back[i]) for i in (0, 2)] == [nn.Conv2d] * 2
    assert back[0].padding == (1, 1)
    torch.testing.assert_close(back(x), twin(x))
    assert all(torch.equal(state[name], tensor) for name, tensor in state.items())


class KeepsABias(nn.Module):
    """As timm's LeViT: a bias that is looked up once and kept, with its history, while the net is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias, self.kept = nn.Conv2d(2, 4, 3), nn.Parameter(torch.randn(4)), {}

    def forward(self, x: Tensor) -> Tensor:
        bias = self.kept.setdefault("cpu", self.bias[[3, 1, 2, 0], None, None])
        return (self.conv(x) + bias).flatten(1)


def test_what_a_call_with_gradients_left_behind() -> None:
    net, x = nn.Sequential(KeepsABias(), nn.Linear(64, 32)).eval(), torch.randn(2, 2, 6, 6)
    y = net(x)
    twin = es.embed(net, x)
    torch.testing.assert_close(twin(x), y)
    assert torch.equal(es.unembed(twin)(x), y)
    assert not twin[0].kept["cpu"].requires_grad
    assert net[0].kept["cpu"].requires_grad
    sparse = es.sparsify(net, {"1": {"density": 1.0, "block_shape": (16, 16)}})
    torch.testing.assert_close(sparse(x), y)
    torch.testing.assert_close(es.densify(sparse)(x), y)
    other = es.unembed(twin)
    other(x)
    assert es.landscape.path(twin, other, lambda one: float(one(x).sum()), points=3).positions == (0, 0.5, 1)


def test_a_view_of_a_parameter_that_is_kept() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 8))
    net.tied = [net[2].weight.t()]
    with pytest.raises(
        ValueError, match=r"views of its parameters at each call, got one of '2.weight' that 'the model"
    ):
        es.embed(net, torch.randn(1, 2, 6, 6))
    net.tied = {"itself": None}
    net.tied["itself"] = net.tied
    assert es.embed(net, torch.randn(1, 2, 6, 6)).tied["itself"]["itself"]


def test_parameters_that_a_forward_writes_stay() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv = nn.Embedding(10, 4, max_norm=0.5), nn.Conv1d(4, 3, 3)

        def forward(self, words: Tensor) -> Tensor:
            return self.conv(self.table(words).mT)

    net, words = Words(), torch.arange(10).view(1, 10)
    before = net.table.weight.detach().clone()
    twin = es.embed(net, example_inputs=(words,))
    plan(net, example_inputs=(words,))
    assert torch.equal(net.table.weight, before)
    torch.testing.assert_close(twin(words), net(words))


def test_names_with_brackets_and_kernels_without_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.large = nn.ModuleDict({"[x]": nn.Conv2d(2, 2, 1)}), nn.Parameter(torch.randn(2, 2, 7, 7))
            self.small, self.other = nn.Parameter(torch.randn(2, 2, 1, 1)), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(self.other(self.conv["[x]"](x)), 2 * self.large, padding=3)
            return F.conv2d(x, 2 * self.small)

    twin = es.embed(Twice(), torch.randn(1, 2, 8, 8), layers={"conv.[x]": None, "": None})
    assert isinstance(twin.conv["[x]"], nn.Conv2d)
    assert es.deviation(twin).coverage == 4 / (4 + 4 + 4 + 4 * 49)


def test_rounding_of_the_model_itself() -> None:
    """A copy may be as far from the fp64 result as the model is, where that is far."""

    class Magnifying(nn.Module):
        def __init__(self, wrong: bool) -> None:
            super().__init__()
            self.conv, self.wrong = nn.Conv2d(4, 4, 3), wrong

        def forward(self, x: Tensor) -> Tensor:
            wrong = self.wrong and not isinstance(self.conv, nn.Conv2d)
            y = self.conv(x)
            for _ in range(5):
                y = (8 * y).sin()
            return y + 0.2 * wrong

    x = torch.randn(2, 4, 12, 12)
    model = Magnifying(False)
    twin = es.embed(model, x)
    assert (twin(x) - model(x)).abs().max() > 1e-4 * model(x).abs().max()  # what would be refused without fp64
    with pytest.raises(ValueError, match=r"^the embedded copy must compute what the model does on the example, to "):
        es.embed(Magnifying(True), x)


def test_more_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["efcn_sparse.embedding.plan"]  # its name leads to the function
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.zeros(1, 4, 8, 8)
    local, dilated = (layer.support.entries(layer.geometry) * 4 for support in (es.Local(), es.Dilated(2))
                      for layer in plan(conv, x, support=support).layers)  # fmt: skip
    for there, best in (
        (dilated, "what fits is Dilated(radius=2), 121.0 KiB"),
        (local, "what fits is Dilated(radius=0), 30.2 KiB"),
        (100, "not even Local() fits"),
    ):
        monkeypatch.setattr(module, "available_bytes", lambda device, there=there: there)
        with pytest.raises(
            ValueError, match=r"^support must fit into the .* of memory available on cpu, got Full\(\)"
        ) as e:
            es.embed(conv, x, support=es.Full())
        assert str(e.value).endswith(f"whose weights alone take 256.0 KiB; {best}")
    monkeypatch.setattr(module, "available_bytes", lambda device: 256 << 10)
    es.embed(conv, x, support=es.Full())
