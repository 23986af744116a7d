"""The example run leaves no trace: not in buffers, flags, hooks, gradients, generators or the example."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.embedding import plan


class Counting(nn.Module):
    """Changes its buffers in evaluation mode too, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.mean()
        noise = torch.rand(x.shape[0], 1, 1, 1)
        return self.drop(self.norm(self.conv(x + noise)))


class Failing(Counting):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("no")


def _run(call: Callable[..., object], model: nn.Module) -> None:
    model.train()
    model.norm.eval()
    x = torch.randn(4, 2, 6, 6)
    x_before, state = x.clone(), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    last, flags = model.last, [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    try:
        call(model, x)
    except RuntimeError:
        assert isinstance(model, Failing)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())
    assert model.last is last
    assert torch.equal(x, x_before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model", [Counting, Failing])
@pytest.mark.parametrize("call", [es.embed, plan])
def test_the_model_is_as_before(call: Callable[..., object], model: type[nn.Module]) -> None:
    _run(call, model())


def test_the_copy_starts_from_the_same_buffers() -> None:
    model = Counting()
    efcn = es.embed(model, torch.randn(4, 2, 6, 6))
    assert int(efcn.calls) == 0
    assert torch.equal(efcn.norm.running_mean, model.norm.running_mean)
    assert efcn.training
    assert efcn.norm.training


def test_random_layers_draw_the_same_in_both_runs() -> None:
    """Without that, the comparison would refuse every model with noise in it."""
    model = Counting().eval()
    efcn = es.embed(model, torch.randn(4, 2, 6, 6))
    torch.manual_seed(1)
    expected = model(torch.ones(1, 2, 6, 6))
    torch.manual_seed(1)
    torch.testing.assert_close(efcn(torch.ones(1, 2, 6, 6)), expected)


class Unfolding(nn.Module):
    """A convolution by a product with windows of the input, before one that is a module."""

    def __init__(self, by_tensor: bool) -> None:
        super().__init__()
        self.by_tensor, self.weight, self.conv = by_tensor, nn.Parameter(torch.randn(2, 18)), nn.Conv2d(2, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_tensor:
            windows = x.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 1, 4, 5, 2, 3).reshape(len(x), 18, 16)
        else:
            windows = nn.functional.unfold(x, 3)
        return self.conv((self.weight @ windows).view(len(x), 2, 4, 4))


@pytest.mark.parametrize("by_tensor", [False, True])
def test_windows_that_are_multiplied_are_named(by_tensor: bool) -> None:
    model, x = nn.Sequential(Unfolding(by_tensor)), torch.randn(1, 2, 6, 6)
    with pytest.warns(UserWarning, match=r"^0: unfolds its input; .* left as it is"):
        es.embed(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        es.embed(model, x, layers={"0": None})
