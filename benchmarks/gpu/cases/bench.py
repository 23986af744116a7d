"""Where a worker measures: device, backend and clock."""

from __future__ import annotations

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
    clock: Clock
    dry: bool

    @classmethod
    def make(cls, dry: bool) -> Bench:
        """The GPU, or with ``dry`` the CPU.

        Raises:
            RuntimeError: there is no GPU.
        """
        if dry:
            torch.set_num_threads(1)
            return cls("cpu", DryClock(), True)
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = True  # the CNN at its best
        return cls("cuda", Clock(), False)

    def randn(self, *shape: int) -> Tensor:
        """bf16 random numbers."""
        return torch.randn(*shape, device=self.device).bfloat16()

    def is_broken(self) -> bool:
        """Whether the device no longer answers: an illegal access stays with the process."""
        if self.dry:
            return False
        try:
            torch.cuda.synchronize()
            return float(torch.rand(2, device="cuda").sum()) > 2.0
        except RuntimeError:
            return True

    def peak_of(self, call: Callable[[], Any]) -> int:
        """The most bytes that tensors hold on the device during ``call``."""
        if self.dry:
            call()
            return 0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
