"""A program: for each ``model support optimizer fused batch`` among its arguments, prints predicted and measured bytes.

Measured is the growth of the process's peak resident memory over a training step, above what it held before the model
was made. To be run with ``EFCN_KEEP_MEMORY=off`` and ``MALLOC_MMAP_THRESHOLD_=131072``, so that memory that is freed
goes back at once.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import efcn_sparse as es
from efcn_sparse import models
from efcn_sparse.embedding import parse_support
from efcn_sparse.fused import updating
from efcn_sparse.planning import predict_step
from efcn_sparse.planning.fused_cost import OPTIMIZERS


def _status(key: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])


def _build(model: str, support: str, optimizer: str, fused: bool, batch: int) -> tuple[nn.Module, object, Tensor]:
    twin = es.embed(models.MODELS[model](), torch.zeros(1, 3, 32, 32), support=parse_support(support))
    make, inside = OPTIMIZERS[optimizer].make, OPTIMIZERS[optimizer].inside
    stepper = es.FusedOptimizer(twin, make, inside=inside) if fused or inside else make(list(twin.parameters()))
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    return twin.train(), stepper, x


def _measure(model: str, support: str, optimizer: str, fused: bool, batch: int) -> int:
    def steps(held: tuple, count: int) -> None:
        twin, stepper, x = held
        for _ in range(count):
            stepper.zero_grad(set_to_none=True)
            with updating(stepper):
                twin(x).square().mean().backward()
            stepper.step()

    steps(_build(model, support, optimizer, fused, 1), 2)  # what is loaded and started on first use
    _tidy()
    before = _status("VmRSS")
    held = _build(model, support, optimizer, fused, batch)
    _tidy()
    Path("/proc/self/clear_refs").write_text("5")
    steps(held, 3)
    return _status("VmHWM") - before


def _tidy() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    torch.set_num_threads(1)
    for case in sys.argv[1:]:
        model, support, optimizer, fused, batch = case.split()
        with torch.device("meta"):
            predicted = predict_step(
                models.MODELS[model](), torch.empty(int(batch), 3, 32, 32), support=parse_support(support),
                optimizer=optimizer, fused=fused == "fused",
            )  # fmt: skip
        print(predicted.peak, _measure(model, support, optimizer, fused == "fused", int(batch)), flush=True)


if __name__ == "__main__":
    main()
