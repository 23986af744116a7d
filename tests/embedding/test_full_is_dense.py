"""Law 6 for whole nets: an eFCN with Full() support trains as a net of nn.Linear does, for a hundred steps.

The dense twin shares nothing with the library: its matrices are torch's own convolutions of unit vectors, its units are
numbered channels first, and nn.Linear multiplies.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import efcn_sparse as es
from efcn_sparse.embedding import EmbeddedConv
from efcn_sparse.fused import updating

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, BATCH, STEPS, CLASSES = 16, 6, 100, 5

# One step differs by roundings of sums, a few u = 1.1e-16 of a tensor's norm. A hundred steps leave at most 3e-15 of it
# (seen over 12 seeds of each optimizer); 1e-12 has room for 300 times that, and spoilt steps are far outside.
FLOAT64_BOUND = 1e-12
# In fp32 neither net is the true one: both are compared with the dense net in fp64. Medians over seeds, because now and
# then two numbers under a pool are equal but for the last bit: the nets then pick different ones and part for good,
# whichever of them it strikes.
FLOAT32_RATIO, FLOAT32_SEEDS = 3.0, range(5)

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum-and-decay": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=5e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2),
}


def vanilla_like() -> nn.Sequential:
    """VanillaCNN with 8 channels, for 16×16 images: its kernels, strides, paddings, and pools as far as they fit."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


class DenseMap(nn.Module):
    """A convolution as nn.Linear over flattened NCHW units, its matrix read off unit vectors."""

    def __init__(self, conv: nn.Conv2d, size: tuple[int, ...]) -> None:
        super().__init__()
        units = torch.eye(size.numel(), dtype=conv.weight.dtype).view(-1, *size)
        with torch.no_grad():
            images = F.conv2d(units, conv.weight, None, conv.stride, conv.padding)
        self.out = images.shape[1:]
        self.linear = nn.Linear(size.numel(), self.out.numel(), dtype=conv.weight.dtype)
        with torch.no_grad():
            self.linear.weight.copy_(images.flatten(1).T)
            self.linear.bias.copy_(conv.bias.repeat_interleave(self.out[1:].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).view(-1, *self.out)


def dense_twin(cnn: nn.Sequential) -> nn.Sequential:
    x = torch.zeros((1, 3, SIDE, SIDE), dtype=next(cnn.parameters()).dtype)
    layers: list[nn.Module] = []
    for layer in cnn:
        if isinstance(layer, nn.Conv2d):
            layers.append(DenseMap(layer, x.shape[1:]))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.Linear(layer.in_features, layer.out_features, dtype=x.dtype))
            layers[-1].load_state_dict(layer.state_dict())
        else:
            layers.append(layer)
        x = layer(x)
    return nn.Sequential(*layers)


def numbers(net: nn.Sequential) -> list[Tensor]:
    """Weights and biases of every layer in fp64, units numbered channels first."""
    found = []
    for layer in net:
        if isinstance(layer, EmbeddedConv):
            g = layer.geometry
            weight = layer.linear.pattern.to_dense(layer.linear.values)
            weight = weight.view(*g.output_size, g.out_channels, *g.input_size, g.in_channels)
            found += [weight.permute(2, 0, 1, 5, 3, 4), layer.linear.bias.view(-1, g.out_channels).T]
        elif isinstance(layer, (DenseMap, nn.Linear)):
            linear = layer.linear if isinstance(layer, DenseMap) else layer
            found += [linear.weight, linear.bias]
    return [tensor.detach().double().flatten().clone() for tensor in found]


def train(net: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int, steps: int = STEPS) -> Tensor:
    """``[steps]``: the losses; every step sees a new batch."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(net.parameters()).dtype
    prototypes = torch.randn((CLASSES, 3, SIDE, SIDE), generator=generator, dtype=torch.float64)
    losses = []
    for _ in range(steps):
        target = torch.randint(CLASSES, (BATCH,), generator=generator)
        noise = torch.randn((BATCH, 3, SIDE, SIDE), generator=generator, dtype=torch.float64)
        x = (prototypes[target] + noise).float().to(dtype)  # the same numbers for all nets
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        with updating(optimizer):
            loss.backward()
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


def cnn_of(seed: int, dtype: torch.dtype) -> nn.Sequential:
    """The same numbers, which fp32 holds, in either type."""
    torch.manual_seed(seed)
    return vanilla_like().to(dtype)


def embedded(cnn: nn.Sequential) -> nn.Sequential:
    efcn = es.embed(cnn, torch.randn((2, 3, SIDE, SIDE), dtype=cnn[0].weight.dtype), support=es.Full())
    assert isinstance(efcn, nn.Sequential)
    return efcn


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest over tensors of the difference in norm, relative to the other."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_trajectory_is_the_dense_nets(optimizer: str, fused: bool) -> None:
    seed = list(OPTIMIZERS).index(optimizer) + 10 * fused
    make = OPTIMIZERS[optimizer]
    cnn = cnn_of(seed, torch.float64)
    dense, efcn = dense_twin(cnn), embedded(cnn)
    start = numbers(dense)
    assert distance(numbers(efcn), start) == 0
    stepper = es.FusedOptimizer(efcn, make) if fused else make(list(efcn.parameters()))
    losses, expected = train(efcn, stepper, seed), train(dense, make(list(dense.parameters())), seed)
    torch.testing.assert_close(losses, expected, rtol=FLOAT64_BOUND, atol=FLOAT64_BOUND)
    apart = distance(numbers(efcn), numbers(dense))
    print(f"\n{optimizer}{', fused' * fused}: {apart:.1e} apart after {STEPS} steps in fp64")  # pytest -s
    assert apart < FLOAT64_BOUND
    assert expected[-10:].mean() < 0.1 < 1 < expected[0]  # it has learnt and left the CNN: there was much to miss
    assert es.deviation(efcn).delta > 0.05


@pytest.mark.parametrize(  # what differs between optimizers, fp64 shows
    "optimizer", [pytest.param(name, marks=[] if name == "adamw" else [pytest.mark.slow]) for name in OPTIMIZERS]
)
def test_fp32_is_as_near_to_fp64_as_nn_linear_is(optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    ratios = []
    for seed in FLOAT32_SEEDS:
        cnn = cnn_of(seed, torch.float32)
        nets = dense_twin(cnn_of(seed, torch.float64)), embedded(cnn), dense_twin(cnn)
        for net in nets:
            train(net, make(list(net.parameters())), seed)
        true, ours, theirs = map(numbers, nets)
        ratios.append(distance(ours, true) / distance(theirs, true))
    print(f"\n{optimizer}: from fp64, {', '.join(f'{ratio:.2f}' for ratio in ratios)} times nn.Linear's own distance")
    assert statistics.median(ratios) < FLOAT32_RATIO


def _freeze_a_block(efcn: nn.Sequential) -> None:
    layer = efcn[3]
    assert isinstance(layer, EmbeddedConv)
    shape = layer.linear.values.shape
    keep = torch.ones(shape[0], 1, 1, dtype=torch.float64)
    keep[shape[0] // 2] = 0
    layer.linear.values.register_hook(lambda gradient: gradient * keep)


def _one_wrong_weight(efcn: nn.Sequential) -> None:
    layer = efcn[0]
    assert isinstance(layer, EmbeddedConv)
    with torch.no_grad():
        layer.linear.values[0, 0, -1] += 1e-8


@pytest.mark.parametrize(
    ("spoil", "rate"),
    [(_freeze_a_block, 0.1), (_one_wrong_weight, 0.1), (lambda _: None, 0.1 * (1 + 1e-8))],
    ids=["a frozen block", "a wrong weight", "another learning rate"],
)
def test_a_spoilt_trajectory_is_seen(spoil: Callable[[nn.Sequential], None], rate: float) -> None:
    cnn = cnn_of(0, torch.float64)
    dense, efcn = dense_twin(cnn), embedded(cnn)
    spoil(efcn)
    train(efcn, torch.optim.SGD(efcn.parameters(), lr=rate), 0, steps=10)
    train(dense, torch.optim.SGD(dense.parameters(), lr=0.1), 0, steps=10)
    assert distance(numbers(efcn), numbers(dense)) > 100 * FLOAT64_BOUND
