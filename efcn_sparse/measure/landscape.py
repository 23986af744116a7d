"""What it costs to look at the landscape: products with the Hessian, and the memory of a path."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efcn_sparse.embedding import embed
from efcn_sparse.landscape import hessian, path
from efcn_sparse.measure.memory import apart, peak_bytes, reset_peak, settle
from efcn_sparse.measure.timing import in_turn, median_ratio
from efcn_sparse.measure.vanilla import make_trainer
from efcn_sparse.models import resnet18
from efcn_sparse.sizes import size_text


def rows(
    batch: int, rounds: int, pixels: int, threads: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, Any]]:
    """Products with the Hessian of VanillaCNN and its ``Local()`` eFCN, and the memory of a path between two eFCNs."""
    found: list[dict[str, Any]] = []
    for variant, name in (("cnn", "VanillaCNN"), ("efcn_sparse", "its eFCN, Local()")):
        trainer = make_trainer(variant, batch)
        net, data = trainer.model, [(trainer.images, trainer.labels)]
        direction = {name: torch.randn_like(value) for name, value in net.named_parameters()}
        calls = {
            "gradient": lambda net=net, data=data: torch.autograd.grad(_loss(net, data[0]), list(net.parameters())),
            "one product": lambda net=net, data=data, v=direction: hessian(net, _loss, data).product(v),
            "trace, 8 products": lambda net=net, data=data: hessian(net, _loss, data).trace(8),
        }
        seconds = in_turn(calls, rounds, clock)  # type: ignore[arg-type]
        for call, times in seconds.items():
            ratio = median_ratio(times, seconds["gradient"])
            found.append(_row(f"{call} of {name}", **{"ms": 1e3 * statistics.median(times), "/ gradient": ratio}))
    weights, peak = apart(__name__, str(pixels), str(threads))
    title = f"path between two eFCNs of ResNet-18 at {pixels} pixels, {size_text(weights)} of weights each"
    return [*found, _row(title, **{"peak memory": size_text(peak), "/ weights": peak / weights})]


def _row(call: str, **columns: Any) -> dict[str, Any]:
    return {"call": call, **dict.fromkeys(("ms", "/ gradient", "peak memory", "/ weights")), **columns}


def _loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


@torch.no_grad()
def path_peak(pixels: int) -> tuple[int, int]:
    """Bytes of the weights of one net, and of all that is held at the peak while a path joins two of them."""
    if pixels > 32:
        path_peak(32)  # libraries load and thread pools start with the first call
    before = settle()
    x = torch.randn(2, 3, pixels, pixels)
    net = embed(resnet18(10).eval(), x[:1])
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.mul_(1.01)
    reset_peak()
    path(net, other, lambda at: float(at(x).square().mean()), points=3, batches=[x])
    return sum(one.nbytes for one in net.parameters()), peak_bytes() - before


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(*path_peak(int(sys.argv[1])))
