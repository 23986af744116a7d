"""A training step of VanillaCNN (forward, backward, SGD) and of its twins, which compute the same function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.linear import SparseLinear
from efcn_sparse.measure.contest import OURS, Contest
from efcn_sparse.measure.locally_connected import unfold_twin
from efcn_sparse.measure.ops import relative_error
from efcn_sparse.measure.roofline import Roofline
from efcn_sparse.measure.shapes import DEVIATION_GOAL, EMBED_GOAL, FULL, VANILLA_GOALS, VanillaShapes
from efcn_sparse.models import vanilla_cnn

VARIANTS = {
    "cnn": "the CNN, channels_last",
    OURS: "its eFCN, Local()",
    "efcn_fused": "the same eFCN, FusedOptimizer",
    "efcn_dense": "the same eFCN, dense nn.Linear layers",
    "lcn_unfold": "locally connected net, unfold + bmm",
}
_IMAGE = (3, 32, 32)
_LEARNING_RATE = 0.01
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Trainer:
    """A model with its optimizer and one batch; calling it makes a training step and returns the loss."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@dataclass
class VanillaContest:
    """A checked contest of training steps, with one deviation reading and one embedding beside them."""

    contest: Contest
    batch: int
    flops: int
    moved: int
    parameters: dict[str, int]
    error: float

    def record(self, roofline: Roofline, peak_memory: dict[str, int]) -> dict[str, Any]:
        """The results of the suite; ``peak_memory`` in bytes, by variant. Goals are judged at the full batch only."""
        contest = self.contest
        seconds = {name: contest.spread(name) for name in contest.contestants}
        rate = 1e-9 * self.flops / seconds[OURS].median
        bound = roofline.bound("float32", self.flops, self.moved)
        ratios = {name: contest.ratio(name, OURS) for name in VARIANTS if name != OURS}
        reading = contest.ratio("deviation", OURS)
        judged = self.batch == FULL.vanilla.batch
        return {
            "batch": self.batch,
            "gflops": rate,
            "gb_s": 1e-9 * self.moved / seconds[OURS].median,
            "roofline_gflops": bound.gflops,
            "limited_by": bound.limited_by,
            "roofline_fraction": rate / bound.gflops,
            "times_faster_than": {name: ratio.median for name, ratio in ratios.items()},
            "times_faster_than_quartiles": {name: [ratio.low, ratio.high] for name, ratio in ratios.items()},
            "goals": VANILLA_GOALS,
            "goals_met": {
                name: ratios[name].median >= goal if judged else None for name, goal in VANILLA_GOALS.items()
            },
            "deviation_share_of_step": reading.median,
            "deviation_goal_met": reading.median < DEVIATION_GOAL if judged else None,
            "embed_seconds": seconds["embed"].median,
            "embed_goal_met": seconds["embed"].median < EMBED_GOAL,
            "seconds": {name: asdict(spread) for name, spread in seconds.items()},
            "peak_memory_bytes": peak_memory,
            "parameters": self.parameters,
            "relative_error": self.error,
        }


def make_trainer(variant: str, batch: int) -> Trainer:
    """The trainer of one of ``VARIANTS``; all of them start from the same CNN and batch."""
    generator = torch.Generator().manual_seed(1906)
    images = torch.randn(batch, *_IMAGE, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    return _trainer(_build(variant, _seeded_cnn(), images[:1]), images, labels, variant)


def prepare(shapes: VanillaShapes) -> VanillaContest:
    """The contest, after all variants gave the CNN's outputs, and ours the dense twin's gradients.

    Raises:
        AssertionError: a variant computes something else.
    """
    from efcn_sparse.embedding import embed
    from efcn_sparse.subspace import deviation

    trainers = {variant: make_trainer(variant, shapes.batch) for variant in VARIANTS}
    error = _check(trainers)
    cnn, ours = trainers["cnn"].model, trainers[OURS].model
    calls: dict[str, Callable[[], object]] = {name: trainer for name, trainer in trainers.items() if name != OURS}
    calls["deviation"] = lambda: deviation(ours)
    calls["embed"] = lambda: embed(cnn, trainers["cnn"].images[:1])
    calls[OURS] = trainers[OURS]
    parameters = {name: sum(p.numel() for p in trainer.model.parameters()) for name, trainer in trainers.items()}
    return VanillaContest(Contest(calls), shapes.batch, *_work(ours, shapes.batch), parameters, error)


def _seeded_cnn() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1906)
        return vanilla_cnn()


def _build(variant: str, cnn: nn.Module, example_input: Tensor) -> nn.Module:
    from efcn_sparse.embedding import EmbeddedConv, embed

    if variant == "cnn":
        return cnn.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant == "lcn_unfold":
        return unfold_twin(cnn, example_input)
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}, got {variant!r}")
    efcn = embed(cnn, example_input)
    if variant == "efcn_dense":
        for module in efcn.modules():
            if isinstance(module, EmbeddedConv):
                module.add_module("linear", module.linear.to_linear())
    return efcn


def _trainer(model: nn.Module, images: Tensor, labels: Tensor, variant: str) -> Trainer:
    # what suits each: unfold reads channels first, everything else channels last
    layout = torch.contiguous_format if variant == "lcn_unfold" else torch.channels_last

    def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=_LEARNING_RATE)

    optimizer = FusedOptimizer(model, sgd) if variant == "efcn_fused" else sgd(model.parameters())
    return Trainer(model.train(), optimizer, images.contiguous(memory_format=layout), labels)


def _check(trainers: dict[str, Trainer]) -> float:
    """The largest relative distance found, of outputs from the CNN's and of our gradients from the dense twin's."""
    with torch.no_grad():
        outputs = {name: trainer.model(trainer.images) for name, trainer in trainers.items()}
    errors = {name: relative_error(output, outputs["cnn"]) for name, output in outputs.items()}
    for name in (OURS, "efcn_dense"):
        trainers[name]()
    twins = dict(trainers["efcn_dense"].model.named_modules())
    for name, layer in trainers[OURS].model.named_modules():
        if isinstance(layer, SparseLinear):
            found, dense = layer.values.grad, twins[name].get_parameter("weight").grad
            assert found is not None
            assert dense is not None
            errors[f"the gradient of {name}"] = relative_error(found, layer.pattern.gather(dense))
    wrong = {name: error for name, error in errors.items() if not error <= _TOLERANCE}
    if wrong:
        raise AssertionError(f"outputs and gradients must agree within {_TOLERANCE}, got {wrong}")
    return max(errors.values())


def _work(efcn: nn.Module, batch: int) -> tuple[int, int]:
    """FLOPs and least bytes of a step's linear maps; the first has no input gradient to find.

    Weights: read forward, read for dX, their gradient written, then SGD reads both and writes one. Activations: three
    products, each with one side read and the other read or written. fp32.
    """
    flops = moved = 0
    for number, layer in enumerate(m for m in efcn.modules() if isinstance(m, (SparseLinear, nn.Linear))):
        nnz = layer.pattern.nnz if isinstance(layer, SparseLinear) else layer.weight.numel()
        products = 2 if number == 0 else 3
        flops += products * 2 * batch * nnz
        moved += 4 * (nnz * (products + 3) + products * batch * (layer.in_features + layer.out_features))
    return flops, moved
