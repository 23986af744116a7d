"""Whole nets: everything that is no convolution stays as it is, and sharing stays sharing."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.embedding import EmbeddedConv, Support
from efcn_sparse.models import BasicBlock, resnet18, vanilla_cnn


class Residual(nn.Module):
    """Strided and plain residual blocks, BatchNorm, both poolings, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(BasicBlock(8, 8, 1), nn.AvgPool2d(2), BasicBlock(8, 12, 2))
        self.head = nn.Linear(12, 4)
        self.other = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        y = self.blocks(self.stem(x))
        return {"scores": self.head(y.mean((2, 3))), "maps": [self.other(nn.functional.max_pool2d(y, 2))]}


class Shared(nn.Module):
    """One convolution under two names, called three times at one size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.again = nn.ModuleList([self.first])

    def forward(self, x: Tensor) -> Tensor:
        return self.first(torch.relu(self.again[0](torch.relu(self.first(input=x)))))


class Viewed(nn.Module):
    """The net of PyTorch's first tutorial, in small: feature maps become vectors by ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(x)), 2)
        return self.head(torch.relu(self.second(x)).view(-1, 6 * 4 * 4))


class AsksItsKernel(nn.Module):
    """As the patch embeddings of vision transformers do; and returns a dataclass."""

    @dataclass
    class Output:
        maps: Tensor
        none: None = None

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, (3, 2), stride=2, groups=2)

    def forward(self, x: Tensor) -> "AsksItsKernel.Output":
        kernel, conv = self.conv.weight, self.conv
        zeros = torch.zeros(kernel.shape, dtype=kernel.dtype, device=kernel.device)
        sizes = (conv.in_channels, conv.out_channels, conv.groups, *conv.kernel_size, *conv.stride, *conv.dilation)
        return self.Output(conv(x.to(kernel.device, kernel.dtype)) + sum(sizes) + zeros.sum() + zeros.numel())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv3d(1, 2, 2), nn.Conv1d(2, 3, 3, padding="same", groups=1)

    def forward(self, volume: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(volume), self.line(line)


def _disturb(model: nn.Module) -> nn.Module:
    """A model in the middle of its training: BatchNorm with statistics, biases that are not zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "vanilla": (vanilla_cnn, ((4, 3, 32, 32),)),
    "residual": (Residual, ((4, 3, 9, 8),)),
    "resnet18": (lambda: resnet18(7), ((2, 3, 32, 32),)),
    "shared": (Shared, ((3, 4, 5, 6),)),
    "two inputs": (TwoInputs, ((2, 1, 3, 4, 5), (2, 2, 7))),
    "a convolution": (lambda: nn.Conv2d(2, 3, 3), ((2, 2, 5, 5),)),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETS)
def test_same_function_and_back(name: str, training: bool) -> None:
    make, shapes = NETS[name]
    model = _disturb(make()).train(training)
    example = tuple(torch.randn(shape) for shape in shapes)
    efcn = es.embed(model, example)
    assert not any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for module in efcn.modules())
    back = es.unembed(efcn)
    assert back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    if name != "resnet18":  # its random outputs in training mode are far from well conditioned
        torch.testing.assert_close(efcn(*example), model(*example), rtol=1e-4, atol=1e-4)
        after, expected = efcn.state_dict(), model.state_dict()
        for key in expected.keys() & after.keys():  # BatchNorm learns the same statistics
            torch.testing.assert_close(after[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("support", [es.Dilated(1), es.Full()], ids=str)
def test_other_supports(support: Support) -> None:
    model, x = _disturb(Residual()).eval(), torch.randn(3, 3, 9, 8)
    torch.testing.assert_close(es.embed(model, x, support=support)(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_shared_convolution_is_embedded_once() -> None:
    model = Shared()
    efcn = es.embed(model, torch.randn(1, 4, 5, 6))
    assert efcn.first is efcn.again[0]
    assert len(list(efcn.parameters())) == len(list(model.parameters())) == 2
    back = es.unembed(efcn)
    assert back.first is back.again[0]


def test_feature_maps_are_contiguous_only_where_the_model_needs_it() -> None:
    x = torch.randn(3, 3, 10, 10)
    model = Viewed()
    efcn = es.embed(model, x)
    torch.testing.assert_close(efcn(x), model(x))
    assert [efcn.first.contiguous_output, efcn.second.contiguous_output] == [True, True]
    assert all(layer(x).is_contiguous() for layer in (efcn.first, copy.deepcopy(efcn).first))
    plain = es.embed(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    assert plain(x).is_contiguous(memory_format=torch.channels_last)


def test_a_model_may_ask_what_its_convolution_is() -> None:
    model, x = AsksItsKernel(), torch.randn(2, 2, 5, 6)
    efcn = es.embed(model, x)
    torch.testing.assert_close(efcn(x).maps, model(x).maps)
    assert efcn.double()(x).maps.dtype == torch.float64


def test_other_modules_are_copies() -> None:
    model = vanilla_cnn()
    efcn = es.embed(model, torch.randn(1, 3, 32, 32))
    mine = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in mine for parameter in efcn.parameters())
    shared_memory = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in efcn.parameters()}
    assert not shared_memory


def test_flags_carry_over() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3))
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model[2].eval()
    efcn = es.embed(model, torch.randn(1, 1, 8, 8))
    flags = [(layer.linear.values.requires_grad, layer.linear.bias.requires_grad, layer.training) for layer in efcn]
    assert flags == [(False, True, True), (True, False, True), (True, True, False)]
    back = es.unembed(efcn)
    assert [(layer.weight.requires_grad, layer.bias.requires_grad, layer.training) for layer in back] == flags


def test_choices_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 2, 3), nn.Sequential(nn.Conv2d(2, 2, 2), nn.Conv2d(2, 3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x))

    net, x = Net(), torch.randn(2, 1, 7, 7)
    layers = {"head.1": None, "head.*": dict(support=es.Dilated(1), block_shape=(6, 4)), "*": es.Full()}
    efcn = es.embed(net, x, layers=layers)
    assert isinstance(efcn.stem, EmbeddedConv)
    assert efcn.stem.support == es.Full()
    assert efcn.head[0].support == es.Dilated(1)
    assert efcn.head[0].linear.pattern.block_shape == (6, 4)
    assert type(efcn.head[1]) is nn.Conv2d
    torch.testing.assert_close(efcn(x), net(x), rtol=1e-5, atol=1e-5)


def test_equal_layers_share_their_structure() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    efcn = es.embed(model, torch.randn(1, 2, 5, 5))
    assert efcn[0].linear.pattern is efcn[1].linear.pattern
    assert efcn[0].linear.values is not efcn[1].linear.values
