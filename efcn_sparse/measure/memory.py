"""The most memory that a process held, and that of a training step in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

import efcn_sparse

# Large tensors get pages of their own, and what is freed goes back. By its defaults the C library cuts them out of one
# heap, and how much of that is lost between them changes a peak by half from process to process.
_OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "EFCN_KEEP_MEMORY": "off"}


def reset_peak() -> None:
    """Set the kernel's high-water mark back to what is held now; where that cannot be done, building counts too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that this process held since it began, or since :func:`reset_peak`."""
    # VmHWM first: after a fork and exec ru_maxrss starts from the parent's peak
    try:
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def settle() -> int:
    """What the process holds now, freed memory given back; the peak counts from here."""
    gc.collect()
    efcn_sparse.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)
    reset_peak()
    return peak_bytes()


def with_this_package() -> dict[str, str]:
    """The environment of a process that imports the package that runs here."""
    root = str(Path(efcn_sparse.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}


def apart(module: str, *arguments: str, environment: Mapping[str, str] = _OWN_PAGES) -> list[int]:
    """The whole numbers that a module prints when a process of its own runs it, with more in its environment.

    Raises:
        RuntimeError: the process failed; with what it wrote to stderr.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**with_this_package(), **environment})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    return [int(number) for number in done.stdout.split()]


def _step_peak(variant: str, batch: int) -> int:
    """Bytes of a training step of one of ``vanilla.VARIANTS`` over what the process held before the model.

    Weights, gradients, activations and the kernels' scratch memory all count, what a heap loses between them does not.
    """
    from efcn_sparse.measure.vanilla import make_trainer

    make_trainer(variant, 1)()  # libraries load and thread pools start with the first call
    before = settle()
    trainer = make_trainer(variant, batch)
    settle()
    for _ in range(2):
        trainer()
    return peak_bytes() - before


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(_step_peak(sys.argv[1], int(sys.argv[2])))
