"""What the measurements will launch, compiled ahead on all cores into Triton's cache: no GPU is touched for it.

    python -m benchmarks.gpu.warm [--groups products nets] [--processes N] [--device sm90 132 232448]

The measuring process would spend a good part of its time compiling. The launchers themselves run here, on tensors
without memory and with a driver that only names the architecture, and stop where they would launch: so what is compiled
is what a launch will ask the cache for. ``--device`` (architecture, multiprocessors, bytes of shared memory) is the
GPU's own by default.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import GROUPS, OPERATIONS, Net, Product, Spec, specs
from efcn_sparse.fused.layer_update import MOST_SLICES, WORKSPACE_BYTES
from efcn_sparse.ops.backends.triton.device import Device, device_of
from efcn_sparse.pattern import BlockPattern, Structure
from efcn_sparse.pattern.slices import row_slices

Job = tuple[str, Any, Any]  # kind, case, and which part of it
_DTYPE = torch.bfloat16


def jobs(groups: Sequence[str], dry: bool = False) -> list[Job]:
    """Parts of the cases, the most important first; of equal kernels whoever comes first compiles the one."""
    found: list[Job] = []
    for spec in specs(groups, dry):
        if isinstance(spec.argument, Product) and spec.kind in ("product", "alternatives"):
            found += [(spec.kind, spec.argument, operation) for operation in OPERATIONS]
        elif spec.kind == "alternatives":
            layers = range(_layers(spec))
            found += [(spec.kind, spec.argument, (layer, op)) for layer, op in itertools.product(layers, OPERATIONS)]
        elif spec.kind in ("step", "layers"):
            found += [(spec.kind, spec.argument, number) for number in range(_layers(spec))]
    return found


def run(job: Job, device: Device) -> None:
    """Compile what one part of a case launches."""
    for call in _calls(job, device):
        call()


def _layers(spec: Spec) -> int:
    from benchmarks.gpu.nets import distinct_layers

    return len(distinct_layers(spec.argument))


def _calls(job: Job, device: Device) -> Iterator[Callable[[], None]]:
    kind, case, part = job
    if kind == "alternatives":
        yield from _alternatives(case, part, device)
        return
    if kind == "product":
        from benchmarks.gpu.predict import make_pattern

        assert isinstance(case, Product)
        yield _one(part, make_pattern(case), case.batch, device, biased=False)
        return
    from benchmarks.gpu.nets import distinct_layers

    assert isinstance(case, Net)
    pattern = distinct_layers(case)[part][0].pattern
    for operation in OPERATIONS:
        if kind == "layers" or operation != "dw":
            yield _one(operation, pattern, case.batch, device, biased=kind == "step")
    if kind == "step":
        yield _one("dw", pattern, case.batch, device, biased=False)
        for dtype in (_DTYPE, torch.float32):  # a step of SGD inside, for weights of both kinds
            yield _one("dw", pattern, case.batch, device, biased=False, beta=1.0, stored=dtype)
        for item in (4, 2):  # slices of the fused optimizer, for weights of fp32 and of bf16
            block_bytes = item * pattern.block_shape[0] * pattern.block_shape[1]
            most = max(WORKSPACE_BYTES["cuda"] // block_bytes, -(-pattern.nnz_blocks // MOST_SLICES), 1)
            for cut in row_slices(pattern, most):
                yield _one("dw", cut.pattern, case.batch, device, biased=False, stride=pattern.shape[0])


def _alternatives(case: Product | Net, part: Any, device: Device) -> Iterator[Callable[[], None]]:
    from benchmarks.gpu.alternatives import configs
    from benchmarks.gpu.nets import distinct_layers
    from benchmarks.gpu.predict import NAMES, make_pattern
    from efcn_sparse.ops.backends.triton import plan, tuning

    if isinstance(case, Product):
        pattern, operation = make_pattern(case), part
    else:
        pattern, operation = distinct_layers(case)[part[0]][0].pattern, part[1]
    problem = plan.Problem.of(NAMES[operation], pattern, case.batch, _DTYPE, device)
    call = _one(operation, pattern, case.batch, device, biased=False)

    def with_it(config: tuning.Config) -> None:
        with tuning.only(config):
            call()

    for config in configs(problem):
        yield functools.partial(with_it, config)


def _one(
    operation: str,
    pattern: BlockPattern,
    batch: int,
    device: Device,
    *,
    biased: bool,
    stride: int | None = None,
    beta: float = 0.0,
    stored: torch.dtype = _DTYPE,
) -> Callable[[], None]:
    from efcn_sparse.ops.backends.triton import launch_sddmm, launch_spmm

    structure, (out, inside) = Structure.of(pattern.structure), pattern.shape
    values = _empty(*pattern.values_shape).to(stored)
    dy, x = _empty(batch, stride or out)[:, :out], _empty(batch, inside)

    def call() -> None:
        launch_spmm.device_of = launch_sddmm.device_of = lambda _: device  # type: ignore[assignment]
        if operation == "forward":
            bias = _empty(out) if biased else None
            launch_spmm.run(_empty(batch, out), x, values, bias, structure, pattern.shape, False, 1.0, 0.0)
        elif operation == "dx":
            launch_spmm.run(_empty(batch, inside), dy, values, None, structure, pattern.shape, True, 1.0, 0.0)
        else:
            launch_sddmm.run(values, dy, x, structure, pattern.shape, 1.0, beta)

    return call


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=_DTYPE, device="meta")


class _Driver:
    """What Triton asks of a GPU before it launches: which one it is."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", int(arch.removeprefix("sm")), 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(arch: str, claims: Path | None) -> None:
    """From now on launches of this process compile for ``arch``, and that is all they do.

    Args:
        claims: where processes note what they have begun, so that each kernel is compiled once.
    """
    from triton import knobs
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_Driver(arch))
    launch = JITFunction.run

    def stop_before_launching(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if kernel is not None:
            _build_launcher(kernel)
        return kernel

    JITFunction.run = stop_before_launching
    if claims is not None:
        knobs.runtime.jit_cache_hook = lambda *, key, repr, **_: _is_taken(claims, f"{key} {repr}")


def _is_taken(claims: Path, key: str) -> bool:
    """Whether another process compiles this kernel; if not, it is this one's from now on."""
    try:
        os.close(os.open(claims / hashlib.sha256(key.encode()).hexdigest(), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return True
    return False


def _build_launcher(kernel: Any) -> None:
    """The C function that passes the arguments; it is in the same cache."""
    try:
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(kernel.src, kernel.metadata)
    except Exception:  # no driver here: the first launch builds it
        return


def _begin(device: Device, claims: Path | None) -> None:
    torch.set_num_threads(1)
    compile_only(device.arch, claims)


def _run(job: Job, device: Device) -> str:
    try:
        run(job, device)
    except Exception as error:  # whoever launches it for good will say the same, and be heard
        return f"{job[1]}, {job[2]}: {type(error).__name__}: {error}"[:300]
    return ""


def warm(todo: Sequence[Job], device: Device, processes: int) -> list[str]:
    """Do the jobs in that many processes; what could not be compiled, in words."""
    claims = Path(tempfile.mkdtemp(prefix="efcn-claims-"))
    try:
        context = multiprocessing.get_context("spawn")
        with context.Pool(processes, _begin, (device, claims)) as pool:
            found = pool.imap_unordered(functools.partial(_run, device=device), todo)
            return sorted(why for why in found if why)
    finally:
        shutil.rmtree(claims, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """Print how many kernels there are now in the cache; 1 if one does not compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--dry-run", action="store_true", help="only what a dry run measures")
    parser.add_argument("--device", nargs=3, metavar=("ARCH", "PROCESSORS", "SHARED_MEMORY"))
    options = parser.parse_args(arguments)
    if options.device:
        device = Device(options.device[0], int(options.device[1]), int(options.device[2]))
    elif torch.cuda.is_available():
        device = device_of(torch.empty(0, device="cuda"))
    else:
        parser.error("torch sees no GPU: name one, --device sm90 132 232448")
    began = time.monotonic()
    failed = warm(jobs(options.groups, options.dry_run), device, options.processes)
    kernels = len(list(Path(_cache_folder()).glob("*/*.cubin")))
    print(f"{kernels} kernels for {device.arch} in the cache after {time.monotonic() - began:.1f} s")
    print(*failed, sep="\n", end="")
    return 1 if failed else 0


def _cache_folder() -> str:
    """Where Triton keeps what it compiled."""
    from triton import knobs

    return str(knobs.cache.dir)


if __name__ == "__main__":
    sys.exit(main())
