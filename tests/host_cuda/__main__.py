"""Runs a command with a CUDA device that is backed by the host's memory.

    python -m tests.host_cuda pytest tests/triton/test_cuda.py        # any command, and all processes it starts
    python -m tests.host_cuda efcn-sparse relax --preset digits --device cuda --epochs 2
    make rehearse                                                     # everything

What it is: the CPU build of torch gets an allocator, a device guard, hooks and generators for ``DeviceType::CUDA``,
and one fallback for every operator, which runs the CPU's kernel on the same memory. ``torch.cuda`` answers as on an
H100. Triton's kernels are interpreted, but the library does not know: it sees sm_90, takes the tuning, the splitting
and the paths of a GPU, and ``auto`` takes Triton. ``EFCN_HOST_CUDA_CAPABILITY=7.5`` makes it a GPU that Triton does
not run on: ``auto`` takes the reference backend, and nothing is interpreted.

What it refuses, as a GPU does: tensors on two devices in one operator (but numbers, and indices on the CPU), CPU
tensors given to a kernel, a generator of the other device, integer matrix products, and in a graph's capture whatever
waits. New memory is full of NaN. What waits is counted by name (``native.waits()``), and raises under
``torch.cuda.set_sync_debug_mode("error")``. A graph's replay runs again what was captured, on the same memory, and
nothing else; the capture itself changes no memory.

What it cannot see: whether a kernel compiles, fits or is fast; races, and what only order on a stream or a second
stream brings out; faults and out-of-bounds reads of a kernel; memory that a graph gave away; cuBLAS's and cuDNN's own
refusals, algorithms and rounding; operators that CUDA lacks or has with other limits; its random numbers; more than
one device; how long anything takes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.host_cuda.build import ROOT, library


def environment() -> dict[str, str]:
    """That of a process which has the device."""
    added = {
        "EFCN_HOST_CUDA": str(library()),
        "EFCN_TEST_DEVICE": "cuda",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).with_name("start")), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | added


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit("usage: python -m tests.host_cuda COMMAND [ARGUMENT ...]")
    try:
        given = environment()
    except RuntimeError as error:
        raise SystemExit(f"tests.host_cuda: {error}") from None
    os.environ.update(given)
    os.environ.pop("TRITON_INTERPRET", None)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
