"""The net that is pruned in the tests, and how it is trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import efcn_sparse as es

RULES = {"head": None, "*": dict(density=0.25, block_shape=(8, 4))}
SCHEDULE = es.CubicSchedule(begin=2, end=9, every=3)
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW([{"params": list(p)}], lr=1e-2, amsgrad=True),
}


class Net(nn.Module):
    """Ragged sides, a layer that is used twice under two names, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(30, 44, bias=False), nn.Linear(44, 44)
        self.again, self.head = self.second, nn.Linear(44, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.second(self.first(x).tanh()).tanh()).tanh())


def net() -> Net:
    torch.manual_seed(3)
    return Net().double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: es.Pruner | None, steps: range) -> None:
    for step in steps:
        x = torch.randn(16, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(16) % 5).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        if pruner is not None:
            pruner.step()


def blocks_of(matrix: Tensor, block_shape: tuple[int, int]) -> list[list[Tensor]]:
    """The oracle's view: slices, one by one."""
    height, width = block_shape
    return [
        [matrix[i : i + height, j : j + width] for j in range(0, matrix.shape[1], width)]
        for i in range(0, matrix.shape[0], height)
    ]


def zeros(matrix: Tensor) -> Tensor:
    return torch.tensor([[bool((block == 0).all()) for block in row] for row in blocks_of(matrix, (8, 4))])
