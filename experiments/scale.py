"""A training step of an eFCN made from ResNet-18: its memory, its time, and whether its numbers are right.

``python -m experiments.scale --pixels 192 --batch 4`` trains 1.2 billion weights and prints a page.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efcn_sparse.embedding import EmbeddedConv, embed
from efcn_sparse.embedding.plan import EmbeddingPlan, plan
from efcn_sparse.fused import FusedOptimizer
from efcn_sparse.measure import machine as machines
from efcn_sparse.measure.memory import peak_bytes, reset_peak, run_apart
from efcn_sparse.models import resnet18
from experiments.held import Saved, available_bytes, max_rss_bytes, parameter_bytes, structure_bytes, trim
from experiments.sampled_check import LAYERS, SampledErrors, StepRecorder

_GIB, _MIB = 1 << 30, 1 << 20
_CLASSES = 1000
_LEARNING_RATE = 0.1
_FIXED_SLACK = 64 * _MIB  # thread pools, allocator, index arrays while they are built
_RELATIVE_SLACK = 0.05  # of the weights
TOLERANCE = 1e-5


@dataclass(frozen=True)
class ScaleResult:
    """What one process found; bytes over what it held before there was a model.

    Attributes:
        weights, stored, weight_bytes: of all embedded layers: entries in the support; numbers held; their memory.
        other_bytes: the CNN, the copy's other parameters and buffers, and all index arrays.
        activation_bytes: what autograd holds between forward and backward.
        workspace_bytes: of the optimizer; for gradients.
        embed_peak_bytes, step_peak_bytes: the most held while embedding, and during the steps.
        max_rss_bytes: ``ru_maxrss`` of the whole process: torch itself and everything else included.
        seconds_embed, seconds_steps: on the wall; the first step is the checked one.
        losses: before each step; ``cnn_loss`` is that of the CNN on the same batch.
        errors: of sampled rows and columns, by layer.
    """

    pixels: int
    batch: int
    fused: bool
    weights: int
    stored: int
    weight_bytes: int
    other_bytes: int
    activation_bytes: int
    workspace_bytes: int
    embed_peak_bytes: int
    step_peak_bytes: int
    max_rss_bytes: int
    seconds_embed: float
    seconds_steps: list[float]
    losses: list[float]
    cnn_loss: float
    errors: dict[str, SampledErrors]

    @property
    def bound_bytes(self) -> int:
        """Weights + activations + one layer's workspace + slack."""
        held = self.weight_bytes + self.other_bytes + self.activation_bytes + self.workspace_bytes
        return held + _FIXED_SLACK + int(_RELATIVE_SLACK * self.weight_bytes)

    def wrong(self) -> list[str]:
        """What is not as it must be; empty if all is well."""
        found = [
            f"{name}: {what} is off by {error:.2g}, more than {TOLERANCE:g}"
            for name, errors in self.errors.items()
            for what, error in asdict(errors).items()
            if error is not None and not error <= TOLERANCE
        ]
        if not abs(self.losses[0] - self.cnn_loss) <= 1e-3 * abs(self.cnn_loss):
            found.append(f"the first loss must be the CNN's, {self.cnn_loss:.6f}, got {self.losses[0]:.6f}")
        for when, peak in (("embedding", self.embed_peak_bytes), ("the steps", self.step_peak_bytes)):
            if peak > self.bound_bytes:
                bound, most = self.bound_bytes / _GIB, peak / _GIB
                found.append(f"{when} must hold at most {bound:.3f} GiB, got {most:.3f} GiB")
        return found


def planned(pixels: int) -> EmbeddingPlan:
    """What the eFCN will store, without storing it."""
    with torch.device("meta"):
        return plan(resnet18(_CLASSES), torch.empty(1, 3, pixels, pixels))


def check_fits(pixels: int, leave: int) -> None:
    """Raise ``MemoryError`` unless the run leaves ``leave`` bytes of this machine's memory to others."""
    needed, available = int(1.2 * planned(pixels).bytes) + _GIB // 2, available_bytes()
    if available is not None and needed + leave > available:
        raise MemoryError(
            f"pixels={pixels} needs about {needed / _GIB:.1f} GiB and must leave {leave / _GIB:.1f} GiB, "
            f"got {available / _GIB:.1f} GiB available; take fewer pixels"
        )


def measure(pixels: int, batch: int, steps: int, fused: bool = True) -> ScaleResult:
    """Embed ResNet-18, check one step against dense rows and columns, and take ``steps`` more.

    Meant for a process of its own (:func:`measure_apart`), whose peak says something.

    Args:
        pixels: the side of the images.
        batch: images in a step.
        steps: how many steps follow the checked one.
        fused: whether :class:`FusedOptimizer` or plain ``torch.optim.SGD`` trains.
    """
    warm_up(fused)
    before = settled_peak()
    torch.manual_seed(1906)
    images, labels = torch.randn(batch, 3, pixels, pixels), torch.randint(_CLASSES, (batch,))
    cnn = resnet18(_CLASSES)
    start = time.perf_counter()
    efcn = embed(cnn, images[:1])
    seconds_embed = time.perf_counter() - start
    embed_peak = peak_bytes() - before
    with torch.no_grad():
        cnn_loss = float(F.cross_entropy(cnn.train()(images), labels))

    settled_peak()
    optimizer = _optimizer(efcn.train(), fused)
    recorder = StepRecorder(cnn, efcn, LAYERS, _LEARNING_RATE)
    seconds, losses, activations = [], [], 0
    for number in range(1 + steps):
        start = time.perf_counter()
        if number == 0:
            saved = Saved(efcn)
            with recorder, saved:
                losses.append(_step(efcn, optimizer, images, labels))
            activations = saved.bytes
        else:
            losses.append(_step(efcn, optimizer, images, labels))
        seconds.append(time.perf_counter() - start)
        if number == 0:
            first_peak = peak_bytes()
            errors = recorder.errors()  # in fp64, and no part of a step
            settled_peak()
    step_peak = max(first_peak, peak_bytes()) - before

    layers = [module.linear for module in efcn.modules() if isinstance(module, EmbeddedConv)]
    weight_bytes = sum(layer.values.nbytes for layer in layers)
    return ScaleResult(
        pixels=pixels, batch=batch, fused=fused,
        weights=sum(layer.pattern.nnz for layer in layers),
        stored=sum(layer.values.numel() for layer in layers), weight_bytes=weight_bytes,
        other_bytes=parameter_bytes(cnn) + parameter_bytes(efcn) - weight_bytes + structure_bytes(efcn),
        activation_bytes=activations,
        workspace_bytes=optimizer.workspace_bytes if isinstance(optimizer, FusedOptimizer) else 0,
        embed_peak_bytes=embed_peak, step_peak_bytes=step_peak, max_rss_bytes=max_rss_bytes(),
        seconds_embed=seconds_embed, seconds_steps=seconds, losses=losses, cnn_loss=cnn_loss, errors=errors,
    )  # fmt: skip


def measure_apart(pixels: int, batch: int, steps: int, threads: int, fused: bool = True) -> ScaleResult:
    """:func:`measure` in a process of its own.

    Raises:
        RuntimeError: the process failed; with what it wrote to stderr.
    """
    numbers = dict(pixels=pixels, batch=batch, steps=steps, threads=threads)
    options = [part for name, number in numbers.items() for part in (f"--{name}", str(number))]
    printed = run_apart(__name__, *options, "--leave", "0", "--json", *([] if fused else ["--unfused"]))
    record = json.loads(printed)
    record["errors"] = {name: SampledErrors(**errors) for name, errors in record["errors"].items()}
    return ScaleResult(**record)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _optimizer(model: nn.Module, fused: bool) -> torch.optim.Optimizer:
    return fused_sgd(model) if fused else torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE)


def fused_sgd(model: nn.Module) -> FusedOptimizer:
    """The optimizer of the fused runs."""
    return FusedOptimizer(model, lambda parameters: torch.optim.SGD(parameters, lr=_LEARNING_RATE))


def warm_up(fused: bool = True) -> None:
    """One step of a small eFCN: libraries load and thread pools start with the first call."""
    cnn = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.LazyLinear(4))
    images = torch.randn(2, 3, 8, 8)
    cnn(images)
    efcn = embed(cnn, images)
    _step(efcn, _optimizer(efcn, fused), images, torch.tensor([0, 1]))


def settled_peak() -> int:
    """What the process holds now, freed memory given back; the high-water mark starts from here."""
    gc.collect()
    trim()
    reset_peak()
    return peak_bytes()


def main() -> int:
    """Print the page, or with ``--json`` the numbers; 1 if something is wrong, 2 if it would not fit."""
    parser = argparse.ArgumentParser(description="A training step of ResNet-18's eFCN: memory, time, correctness.")
    parser.add_argument("--pixels", type=int, default=192, help="side of the images (default: 192, 1.2e9 weights)")
    parser.add_argument("--batch", type=int, default=4, help="images in a step (default: 4)")
    parser.add_argument("--steps", type=int, default=2, help="steps after the checked one (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--leave", type=float, default=6.0, metavar="GIB", help="memory to leave free (default: 6)")
    parser.add_argument("--unfused", action="store_true", help="train with torch.optim.SGD, to see what that holds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = machines.describe(arguments.threads)
    try:
        check_fits(arguments.pixels, int(arguments.leave * _GIB))
    except MemoryError as error:
        print(f"scale: error: {error}", file=sys.stderr)
        return 2
    result = measure(arguments.pixels, arguments.batch, arguments.steps, not arguments.unfused)
    if arguments.json:
        print(json.dumps(asdict(result)))
        return 0
    from experiments.scale_page import markdown  # which knows this module

    print(markdown(result, machine), end="")
    return 1 if result.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
