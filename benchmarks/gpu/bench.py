"""Where a worker measures: device, backend, clock, and the ceilings of the device."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efcn_sparse.measure.gpu_clock import Clock, DryClock


@dataclass(frozen=True)
class Bench:
    """What every measurement is given."""

    device: str
    backend: str
    clock: Clock
    dry: bool

    @classmethod
    def make(cls, dry: bool) -> Bench:
        """The GPU, or with ``dry`` the CPU.

        Raises:
            RuntimeError: there is no GPU.
        """
        if dry:
            return cls("cpu", _dry_backend(), DryClock(), True)
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = True  # the CNN at its best
        return cls("cuda", "triton", Clock(), False)

    def randn(self, *shape: int) -> Tensor:
        """bf16 random numbers."""
        return torch.randn(*shape, device=self.device).bfloat16()

    @functools.cache  # noqa: B019  there is one bench in a process
    def ceilings(self) -> Any:
        """:func:`benchmarks.gpu.ceilings.measure`, once."""
        from benchmarks.gpu import ceilings

        return ceilings.measure(self)

    def is_broken(self) -> bool:
        """Whether the device no longer answers, or draws: an illegal access stays with the process."""
        if self.dry:
            return False
        try:
            torch.cuda.synchronize()
            return float(torch.rand(2, device="cuda").sum()) > 2.0
        except RuntimeError:
            return True

    # -- memory ------------------------------------------------------------------------------------------------

    def held(self) -> int:
        """Bytes that tensors hold on the device now, after everything that can go is gone."""
        gc.collect()
        if self.dry:
            return 0
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    def peak_of(self, call: Callable[[], Any]) -> int:
        """The most bytes that tensors hold on the device during ``call``."""
        if not self.dry:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        call()
        if self.dry:
            return 0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def free_bytes(self) -> int:
        """What can still be allocated."""
        return 1 << 30 if self.dry else torch.cuda.mem_get_info()[0]


def _dry_backend() -> str:
    from efcn_sparse.ops.backends import triton

    return "triton" if triton.why_not("cpu", torch.bfloat16) is None else "reference"


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in fp64."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm())
