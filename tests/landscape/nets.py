"""Small nets in fp64 whose dense matrices the tests can afford."""

import torch
from torch import nn
from torch.nn import functional

import efcn_sparse as es


def cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, groups=1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3),
    ).double()  # fmt: skip
    net(batch()[0])  # statistics that are not those of a fresh net
    return net.eval()


def batch(seed: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(10, 2, 6, 6, dtype=torch.float64, generator=generator),
        torch.randint(3, (10,), generator=generator),
    )


def efcn(support, seed: int = 0, away: float = 0.3, block_shape=None) -> nn.Module:
    """An embedding of ``cnn(seed)`` that has left it."""
    layers = None if block_shape is None else {"*": dict(support=support, block_shape=block_shape)}
    net = es.embed(cnn(seed), batch()[0], support=support, layers=layers)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += away * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return net


def loss(net: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return functional.cross_entropy(net(data[0]), data[1])
