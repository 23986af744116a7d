"""The peak memory of a training step, measured in a process of its own.

``python -m efcn_sparse.measure.memory VARIANT --batch N --steps N --threads N`` prints the bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import torch

import efcn_sparse
from efcn_sparse.measure.shapes import VanillaShapes
from efcn_sparse.measure.vanilla import VARIANTS, make_trainer


def peak_memory(shapes: VanillaShapes, threads: int) -> dict[str, int]:
    """Bytes by variant: the most that the process held during its steps, over what it held before the model was made.

    Weights, gradients, activations and the kernels' scratch memory all count.
    """
    return {variant: _measure_apart(variant, shapes, threads) for variant in VARIANTS}


def _measure_apart(variant: str, shapes: VanillaShapes, threads: int) -> int:
    steps = ("--batch", str(shapes.batch), "--steps", str(shapes.memory_steps))
    arguments = (variant, *steps, "--threads", str(threads))
    return int(run_apart("efcn_sparse.measure.memory", *arguments))


def run_apart(module: str, *arguments: str) -> str:
    """What ``python -m module arguments`` prints, in a process of its own.

    Raises:
        RuntimeError: it failed; with what it wrote to stderr.
    """
    root = str(Path(efcn_sparse.__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr.strip()}")
    return done.stdout


def _measure(variant: str, batch: int, steps: int) -> int:
    _warm_up()
    reset_peak()
    before = peak_bytes()
    trainer = make_trainer(variant, batch)
    reset_peak()
    for _ in range(steps):
        trainer()
    return peak_bytes() - before


def _warm_up() -> None:
    """One step of the small CNN on one image: libraries load and thread pools start with the first call."""
    import efcn_sparse.embedding  # noqa: F401

    make_trainer("cnn", 1)()


def reset_peak() -> None:
    """Set the kernel's high-water mark back to what is held now; where that cannot be done, building counts too."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most that this process held since it began, or since :func:`reset_peak`."""
    # VmHWM first: after a fork and exec ru_maxrss starts from the parent's peak
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the peak bytes of a training step.")
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(_measure(arguments.variant, arguments.batch, arguments.steps))


if __name__ == "__main__":
    main()
