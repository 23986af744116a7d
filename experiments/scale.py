"""Training steps of an eFCN made from a ResNet: peak memory, time, and sampled units against dense rows in fp64.

    python -m experiments.scale                                         # ResNet-18: 1.2 billion weights in 6 GiB
    python -m experiments.scale --budget 1.05                           # the same with blocks that move
    python -m experiments.scale --net resnet50 --pixels 224 --batch 1 --dtype bfloat16     # 3.9 billion in 9 GiB
    python -m experiments.scale --checkpoint DIR --killed-in 2          # saves after each step, is killed in the third;
    python -m experiments.scale --checkpoint DIR                        # goes on from there

Exits with 1 if an error exceeds 1e-5 (in bf16 a rounding), or a step holds 10% more than its weights, twice the
CNN and 80 MiB, as ``--optimizer torch`` does.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse.available import available_bytes
from efcn_sparse.checkpoint import load_sharded, save_sharded
from efcn_sparse.embedding.conv import EmbeddedConv
from efcn_sparse.embedding.plan import plan
from efcn_sparse.fused import updating
from efcn_sparse.gradients import Factors, record_factors
from efcn_sparse.growth.regrow import Regrown
from efcn_sparse.measure import report
from efcn_sparse.measure.memory import peak_bytes, settle
from efcn_sparse.models import MODELS
from efcn_sparse.sizes import size_text

LAYERS = (  # RGB; 3×3; strided; 1×1; the widest
    "conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.downsample.0", "layer4.1.conv2",
)  # fmt: skip
RATE = 0.1
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}
_LOSS_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_UNITS = 4
_OTHER_BYTES = 80 << 20  # beside twice the CNN, since what is not embedded is copied: thread pools, allocator


def dense_row(conv: nn.Module, input_size: tuple[int, ...], unit: int) -> tuple[Tensor, Tensor]:
    """fp64 and bool ``[in_features]``: row ``unit`` of the convolution's matrix, and where its receptive field is.

    The derivative of one output of torch's own convolution by its inputs, units counted channels last.
    """

    def derivative(convolution: Any) -> Tensor:
        x = torch.zeros(1, convolution.in_channels, *input_size, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (dx,) = torch.autograd.grad(convolution(x).movedim(1, -1).flatten()[unit], x)
        return dx.movedim(1, -1).flatten()

    double: Any = copy.deepcopy(conv).double()
    ones = copy.deepcopy(double)
    nn.init.ones_(ones.weight)
    return derivative(double), derivative(ones) != 0


def stored_row(layer: es.SparseLinear, unit: int) -> Tensor:
    """fp64 ``[in_features]``: row ``unit`` of W as the layer stores it."""
    pattern, (height, width) = layer.pattern, layer.pattern.block_shape
    blocks = slice(*pattern.crow_indices[unit // height : unit // height + 2].tolist())
    row = torch.zeros(pattern.grid[1], width, dtype=torch.float64)
    row[pattern.col_indices[blocks].long()] = layer.values.detach()[blocks, unit % height].double()
    return row.flatten()[: layer.in_features]


def relative(found: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest |error| / scale; where the scale is zero, any error is infinite."""
    error = (found.double() - expected).abs()
    return float(torch.where(error == 0, 0.0, error / scale).max())


@torch.no_grad()
def errors(conv: nn.Module, layer: EmbeddedConv, factors: Factors) -> dict[str, float]:
    """After a step of plain SGD: sampled rows against ``row − lr · dyᵀ x``, and what the step changed against the same.

    Args:
        conv: with the weights before the step.
        factors: ``x`` and ``dy`` of the step.
    """
    updated = missed = changed = 0.0
    x, units = factors.x.double(), layer.linear.out_features
    inner = torch.randint(units, (_UNITS - 2,), generator=torch.Generator().manual_seed(units)).tolist()
    for unit in (0, units - 1, *inner):
        row, field = dense_row(conv, layer.geometry.input_size, unit)
        dy, stored = factors.dy[:, unit].double(), stored_row(layer.linear, unit)
        change = -RATE * (dy @ x) * field
        updated = max(updated, relative(stored, row + change, row.abs() + RATE * (dy.abs() @ x.abs()) * field))
        rounding = torch.finfo(layer.linear.values.dtype).eps / 2 * (row.abs() + change.abs())
        missed += float(((stored - row - change).abs() - rounding).clamp(min=0).square().sum())
        changed += float(change.square().sum())
    return {"updated rows": updated, "the update": math.sqrt(missed / changed) if changed else math.inf}


@torch.no_grad()
def score_error(done: Regrown, factors: Factors, layer: EmbeddedConv) -> float:
    """The largest relative error of sampled scores of blocks that were chosen, against the product of the factors."""
    height, width = layer.linear.pattern.block_shape
    worst = 0.0
    for at in range(0, done.blocks, max(1, done.blocks // _UNITS)):
        row, col = done.grown[at].tolist()
        dy, x = (
            f[:, i * side : (i + 1) * side].double()
            for f, i, side in ((factors.dy, row, height), (factors.x, col, width))
        )
        exact = float((dy.T @ x).norm())
        worst = max(worst, abs(float(done.gradient_norms[at]) - exact) / exact)
    return worst


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@torch.no_grad()
def least_seconds(values: list[Tensor]) -> float:
    """Of reading all values for the output and for the input's gradient, and reading and writing them in the update."""
    words = [part.flatten().view(torch.int64) for part in values]

    def once() -> None:
        for word in words:
            word.sum(), word.sum(), word.bitwise_or_(0)

    return statistics.median(timed(once)[0] for _ in range(3))


def run(options: argparse.Namespace, support: es.Support, nbytes: int) -> tuple[dict[str, Any], bool]:
    """The tables of the page, and whether all is well; meant for a process of its own."""
    torch.manual_seed(1906)
    dtype, tolerance = options.dtype, TOLERANCE[options.dtype]

    def batch(number: int) -> tuple[Tensor, Tensor]:  # another one for each step, or there is little left to learn
        drawn = torch.Generator().manual_seed(number)
        images = torch.randn(options.batch, 3, options.pixels, options.pixels, generator=drawn).to(dtype)
        return images, torch.randint(1000, (options.batch,), generator=drawn)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        with updating(optimizer):
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=RATE)

    small = es.embed(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 8, 8))  # libraries load and thread pools start
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    write = min(timed(lambda: torch.empty(nbytes, dtype=torch.uint8).fill_(1))[0] for _ in range(2))
    before = settle()
    cnn = MODELS[options.net](1000).to(dtype)
    images, labels = batch(0)
    seconds_embed, efcn = timed(lambda: es.embed(cnn, images[:1], support=support))
    embed_peak = peak_bytes() - before
    cnn_bytes = sum(parameter.nbytes for parameter in cnn.parameters())
    with torch.no_grad():
        cnn_loss = float(F.cross_entropy(cnn.train()(images), labels))
    fused = options.optimizer != "torch"
    optimizer: Any = sgd(efcn.train().parameters())
    if fused:
        optimizer = es.FusedOptimizer(efcn, sgd, inside=options.optimizer == "inside")
    growth = None if options.budget is None else es.Growth(efcn, optimizer, every=options.steps + 1)
    convs = {name: module for name, module in efcn.named_modules() if isinstance(module, EmbeddedConv)}
    state = {**efcn.state_dict(), "steps": torch.zeros((), dtype=torch.int64)}
    if options.checkpoint is not None and options.checkpoint.exists():
        load_sharded(state, options.checkpoint)
    first = int(state["steps"])
    seconds, losses, peaks = [], [], []
    checked: list[dict[str, Any]] = []
    for number in range(first, 1 + options.steps):
        if number == options.killed_in:
            efcn.get_submodule("layer3").register_full_backward_pre_hook(
                lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            )
        settle()
        with record_factors(efcn) as factors, growth.watch() if growth is not None else contextlib.nullcontext():
            taken, loss = timed(functools.partial(step, efcn, optimizer, *batch(number)))
        peaks.append(peak_bytes() - before)
        seconds.append(taken)
        losses.append(loss)
        if growth is None and number == 0:
            for name in (name for name in LAYERS if name in convs):
                found = errors(cnn.get_submodule(name), convs[name], factors[f"{name}.linear"])
                checked.append({"layer": name, **found})
        if growth is not None and number < options.steps:
            growth.step()
        if options.checkpoint is not None:
            state["steps"].fill_(number + 1)
            save_sharded(state, options.checkpoint)
            print(f"saved after step {number}", flush=True)
    held = sum(part.nbytes for pair in factors.values() for part in pair)
    values = [conv.linear.values for conv in convs.values()]
    weight_bytes = sum(part.nbytes for part in values)
    summary: dict[str, Any] = {
        "weights in the support": sum(conv.linear.pattern.nnz for conv in convs.values()),
        "memory of the stored weights": size_text(weight_bytes),
        "peak while embedding": size_text(embed_peak),
        "peak of the steps": size_text(max(peaks)),
        "inputs and gradients of outputs, recorded": size_text(held),
        "embedding, with its own check, s": seconds_embed,
        "writing as many bytes into new memory, s": write,
        "steps, s": ", ".join(f"{s:.2f}" for s in seconds),
        "reading the weights twice and updating them in place, s": least_seconds(values),
        "losses": ", ".join(f"{one:.6g}" for one in losses),
        "loss of the CNN": f"{cnn_loss:.6g}",
    }
    well = first > 0 or abs(losses[0] - cnn_loss) <= _LOSS_TOLERANCE[dtype] * cnn_loss
    well = well and all(line[key] <= tolerance for line in checked for key in ("updated rows", "the update"))
    if growth is not None:
        settle()
        summary["growth, s"], done = timed(growth.step)
        summary["peak of the growth"] = size_text(peak_bytes() - before)
        summary["blocks moved"] = sum(one.blocks for one in done.values())
        summary["error of scores"] = max(score_error(done[n], factors[f"{n}.linear"], convs[n]) for n in done)
        well = well and summary["blocks moved"] > 0 and summary["error of scores"] <= tolerance
    else:  # no gradient of the weights was held
        well = well and max(peaks) - held <= 1.1 * weight_bytes + 2 * cnn_bytes + _OTHER_BYTES
    rows = [{"": name, "value": value} for name, value in summary.items()]
    return {"Memory and time": rows, "Largest error of sampled rows": checked}, well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=("resnet18", "resnet50"), default="resnet18", help="(default: resnet18)")
    parser.add_argument("--pixels", type=int, default=192, help="side of the images (default: 192)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--batch", type=int, default=4, help="images in a step (default: 4)")
    parser.add_argument("--steps", type=int, default=2, help="steps after the checked one (default: 2)")
    parser.add_argument("--budget", type=float, help="of Grown: blocks move after the last step")
    parser.add_argument(
        "--optimizer", choices=("fused", "inside", "torch"), default="inside",
        help="FusedOptimizer with SGD, its steps inside the product (default), or torch's SGD, to see what that holds",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="save there after each step; go on from there")
    parser.add_argument("--killed-in", type=int, metavar="N", help="die by SIGKILL in the backward pass of step N")
    parser.add_argument("--results", type=Path, metavar="DIR", help="write the page and its JSON there")
    options = parser.parse_args()
    options.dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    support = es.Local() if options.budget is None else es.Grown(options.budget)
    with torch.device("meta"):
        net = MODELS[options.net](1000).to(options.dtype)
        planned = plan(net, torch.empty(1, 3, options.pixels, options.pixels, dtype=options.dtype), support=support)
    # blocks that move are held twice, a layer at a time
    needed, left = int((1.1 if options.budget is None else 1.4) * planned.bytes) + (1 << 30), available_bytes()
    if left is not None and needed > left:
        parser.error(f"--pixels {options.pixels} needs about {size_text(needed)}, got {size_text(left)} available")
    tables, well = run(options, support, planned.bytes)
    dtype = str(options.dtype).removeprefix("torch.")
    title = (
        f"{options.net} at {options.pixels} pixels as an eFCN, `{support}`, {dtype}, batch {options.batch}, "
        f"{options.optimizer} SGD"
    )
    results = report.results(title, options.threads, tables)
    print(report.markdown(results) + ("\nAll within bounds." if well else "\n**Not within bounds.**"))
    if options.results is not None:
        kind = "scale" if options.budget is None else "growth"
        report.write(results, options.results, f"{kind}-{options.net}-{options.pixels}-{dtype}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
