"""A training step of VanillaCNN (forward, backward, SGD) and of its twins, which compute the same function."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efcn_sparse.activation import IN_LESS_MEMORY, exchange
from efcn_sparse.embedding import EmbeddedConv, embed
from efcn_sparse.fused import FusedOptimizer, updating
from efcn_sparse.linear import SparseLinear
from efcn_sparse.measure import memory
from efcn_sparse.measure.ops import relative_error
from efcn_sparse.measure.timing import OURS, in_turn, median_ratio
from efcn_sparse.models import vanilla_cnn
from efcn_sparse.sizes import size_text
from efcn_sparse.subspace import deviation

VARIANTS = {
    "cnn": "the CNN, channels_last",
    "modules": "the CNN, with our ReLU, MaxPool2d and Sequential",
    "dense": "its eFCN with nn.Linear layers",
    "unfold": "locally connected net, unfold + bmm",
    "fused": "its eFCN, Local(), FusedOptimizer",
    "inside": "its eFCN, Local(), FusedOptimizer, inside=True",
    OURS: "its eFCN, Local()",
}
_TOLERANCE = 1e-4
_WARM_STEPS, _STEPS = 5, 25


@dataclass(frozen=True)
class Trainer:
    """A model with its optimizer and one batch; calling it makes a training step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.images), self.labels)
        with updating(self.optimizer):
            loss.backward()
        self.optimizer.step()


class UnfoldLocallyConnected(nn.Module):
    """A locally connected layer as it is usually written: unfold, then a batched product over positions.

    Its weights are ``[positions, C_in·k·k, C_out]``, padding columns included.
    """

    def __init__(self, conv: nn.Conv2d, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.window: Any = dict(kernel_size=conv.kernel_size, stride=conv.stride, padding=conv.padding)
        self.grid = grid
        kernel, positions = conv.weight.detach().flatten(1).T, grid[0] * grid[1]
        self.weight = nn.Parameter(kernel.expand(positions, *kernel.shape).contiguous())
        assert conv.bias is not None
        self.bias = nn.Parameter(conv.bias.detach().expand(positions, 1, conv.out_channels).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, **self.window).permute(2, 0, 1)  # [positions, N, C_in·k·k]
        return torch.baddbmm(self.bias, patches, self.weight).permute(1, 2, 0).unflatten(2, self.grid)


def make_trainer(variant: str, batch: int) -> Trainer:
    """The trainer of one of ``VARIANTS``; all of them start from the same CNN and batch."""
    generator = torch.Generator().manual_seed(1906)
    images = torch.randn(batch, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1906)
        model: Any = vanilla_cnn()
    efcn = embed(model, images[:1])
    layout = torch.channels_last
    if variant in ("cnn", "modules"):
        original, model = model, copy.deepcopy(model).to(memory_format=layout)
        if variant == "modules":
            exchange(model, original, IN_LESS_MEMORY)
    elif variant == "unfold":
        layout = torch.contiguous_format  # which suits unfold
        for name, module in efcn.named_modules():
            if isinstance(module, EmbeddedConv):
                conv = model.get_submodule(name)
                model.set_submodule(name, UnfoldLocallyConnected(conv, module.geometry.output_size))
    else:
        model = copy.deepcopy(efcn)
        if variant == "dense":
            for module in model.modules():
                if isinstance(module, EmbeddedConv):
                    module.add_module("linear", module.linear.to_linear())

    def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01)

    fused = variant in ("fused", "inside")
    optimizer = FusedOptimizer(model, sgd, inside=variant == "inside") if fused else sgd(model.parameters())
    return Trainer(model.train(), optimizer, images.contiguous(memory_format=layout), labels)


def checked_trainers(batch: int) -> dict[str, Trainer]:
    """The trainers of all variants, after outputs were those of the CNN, and our gradients those of the dense twin.

    Raises:
        AssertionError: a variant computes something else.
    """
    trainers = {variant: make_trainer(variant, batch) for variant in VARIANTS}
    with torch.no_grad():
        outputs = {name: trainer.model(trainer.images) for name, trainer in trainers.items()}
    errors = {name: relative_error(output, outputs["cnn"]) for name, output in outputs.items()}
    for name in (OURS, "dense"):
        trainers[name]()
    twins = dict(trainers["dense"].model.named_modules())
    for name, layer in trainers[OURS].model.named_modules():
        if isinstance(layer, SparseLinear):
            found, dense = layer.values.grad, twins[name].get_parameter("weight").grad
            assert found is not None
            assert dense is not None
            errors[f"the gradient of {name}"] = relative_error(found, layer.pattern.gather(dense))
    wrong = {name: error for name, error in errors.items() if not error <= _TOLERANCE}
    if wrong:
        raise AssertionError(f"outputs and gradients must agree within {_TOLERANCE}, got {wrong}")
    return trainers


def _step_microseconds(variant: str, batch: int) -> int:
    trainer = make_trainer(variant, batch)
    seconds = []
    for _ in range(_WARM_STEPS + _STEPS):
        start = time.perf_counter()
        trainer()
        seconds.append(time.perf_counter() - start)
    return round(1e6 * statistics.median(seconds[_WARM_STEPS:]))


def rows(batch: int, rounds: int, threads: int) -> list[dict[str, Any]]:
    """The table: a step of each variant, then one ``deviation`` and one ``embed``."""
    trainers = checked_trainers(batch)
    ours, cnn = trainers[OURS].model, trainers["cnn"].model
    others = {"deviation": lambda: deviation(ours), "embed": lambda: embed(cnn, trainers["cnn"].images[:1])}
    seconds = in_turn({**others, **trainers}, rounds)

    def line(name: str, title: str, **more: Any) -> dict[str, Any]:
        times = {"ms": 1e3 * statistics.median(seconds[name]), "/ ours": median_ratio(seconds[name], seconds[OURS])}
        return {"call": title, **times, **dict.fromkeys(("ms alone", "parameters", "peak memory")), **more}

    found = []
    for name, title in VARIANTS.items():
        arguments = name, str(batch), str(threads)
        more = {
            # with its allocator as it is: what a training script sees
            "ms alone": 1e-3 * memory.apart(__name__, *arguments, environment={})[0],
            "parameters": sum(p.numel() for p in trainers[name].model.parameters()),
            "peak memory": size_text(memory.apart(memory.__name__, *arguments)[0]),
        }
        found.append(line(name, f"step of {title}", **more))
    return [*found, *(line(name, f"`{name}`") for name in others)]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(_step_microseconds(sys.argv[1], int(sys.argv[2])))
