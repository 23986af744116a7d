"""The kernels, compiled for GPUs that need not be here: ``python -m benchmarks.gpu.compile_ahead [--arch sm90 ...]``.

Triton carries its compilers. A product passes if it has the tensor instruction of its architecture (fp32 as TF32),
spills nothing, fits registers and shared memory, loads operands ahead, and sums in fp64 only for fp64. Each is compiled
in the plain case and with all that it may have to do: masks, ragged edges, split rows, beta; dW into fp32 values.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from efcn_sparse.ops.backends.triton import sddmm_kernel, spmm_kernel, tiles
from efcn_sparse.ops.backends.triton.tiles import Case
from efcn_sparse.subspace.backends.triton import subspace_kernel

INSTRUCTIONS = {"sm80": "mma.sync", "sm90": "wgmma.mma_async", "sm100": "tcgen05.mma", "gfx942": "v_mfma"}
PROCESSORS = {"sm80": 108, "sm90": 132, "sm100": 148, "gfx942": 304}
SHARED = {"sm80": 163 << 10, "sm90": 227 << 10, "sm100": 227 << 10, "gfx942": 64 << 10}
TYPES = {16: "bf16", 32: "fp32", 64: "fp64"}
PRODUCTS = ((16, 128, 8192), (16, 64, 256), (16, 16, 8192), (32, 64, 1024), (64, 64, 1024))  # bits, block, batch
CUTS = ((32, 64), (2, 1024))  # of the subspace kernels: copies × elements
_FACTORS = 4  # alpha and beta come in fp64, and are rounded once for each part of a tile
_FLOATS = ("y", "x", "values", "bias", "out", "a", "b", "projected")
_SUMS = ("totals", "squares", "slot_totals", "slot_squares", "off_local", "parts")
_INDICES = ("tasks", "sums", "members", "entry_cols", "entry_blocks", "mask_index", "rows_of_blocks", "cols_of_blocks",
            "maps", "class_starts", "blocks_by_class")  # fmt: skip
_ALIGNED = ("stride_x", "stride_a", "stride_b", "in_features", "out_features")


class Job(NamedTuple):
    """A kernel to compile: its compile-time arguments, and of SDDMM the type of the output where it is another one."""

    kernel: Any
    dtype: str
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3
    out: str = ""

    @property
    def is_product(self) -> bool:
        return "PRECISION" in self.constants


def products(arch: str) -> Iterator[Job]:
    """Each product in the plain case, no rows joined, and with all that it may have to do, the most rows joined."""
    for (bits, side, batch), operation in itertools.product(PRODUCTS, tiles.OPERATIONS):
        sampled = operation == "sddmm"
        results = 4096 * 512 if sampled else 4096
        config, _ = tiles.by_rule(Case(operation, arch, bits, side, side, batch, 0.125, results), PROCESSORS[arch])
        for members, everything in ((1, False), (tiles.sizes(side, config.block_n)[-1], True)):
            cut = tiles.trimmed(config, side, members)
            while (cut.block_m + cut.block_n) * cut.block_k * bits // 8 * cut.stages > SHARED[arch]:
                cut = replace(cut, stages=cut.stages - 1)
            # a batch that is cut leaves masks and beta to the sum of its stretches
            constants = dict(
                HEIGHT=side, WIDTH=side, MEMBERS=members, BLOCK_M=cut.block_m, BLOCK_N=cut.block_n, BLOCK_K=cut.block_k,
                SPLIT=everything and not sampled, MASKED=everything, RAGGED=everything, ADD=everything,
                PRECISION="tf32" if bits == 32 else "ieee", ACCUMULATE=tl.float64 if bits == 64 else tl.float32,
            )  # fmt: skip
            if sampled:
                out = "fp32" if bits == 16 and everything else ""
                yield Job(sddmm_kernel.sddmm_kernel, TYPES[bits], constants, cut.warps, cut.stages, out)
            else:
                steps = dict(
                    zip(("STEP_OUT", "STEP_IN"), (1, side) if operation == "spmm_t" else (side, 1), strict=True)
                )
                constants |= steps | dict(SWIZZLE=cut.swizzle, HAS_BIAS=True)
                yield Job(spmm_kernel.spmm_kernel, TYPES[bits], constants, cut.warps, cut.stages)


def others() -> Iterator[Job]:
    """The kernels without products: sums of pieces and stretches, the passes over a subspace."""
    for dtype in ("bf16", "fp32"):
        common = dict(HEIGHT=64, ADD=True, ACCUMULATE=tl.float32)
        pieces = common | dict(MEMBERS=2, BLOCK_M=32, BLOCK_N=128, HAS_BIAS=True)
        yield Job(spmm_kernel.sum_pieces_kernel, dtype, pieces, spmm_kernel.SUM_WARPS)
        stretches = common | dict(WIDTH=48, BLOCK=1024, MASKED=True, RAGGED=True)
        yield Job(sddmm_kernel.sum_stretches_kernel, dtype, stretches)
        yield Job(subspace_kernel.add_slots_kernel, dtype, dict(WIDTH=1024))
        for height, width in CUTS:
            yield Job(subspace_kernel.read_copies_kernel, dtype, dict(HEIGHT=height, WIDTH=width))
            yield Job(subspace_kernel.project_kernel, dtype, dict(HEIGHT=height, WIDTH=width, TIE=height == 2))
        for entries in (1, 256):
            cut = dict(ENTRIES=entries, PLACES=256 // entries, WRITE=entries > 1)
            yield Job(subspace_kernel.join_places_kernel, dtype, cut)


def compiled(job: Job, arch: str) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory, fp64 operations and faults of a kernel, compiled as at a launch."""
    names, constants = job.kernel.arg_names, dict(job.constants)
    if "stride_bias" in names:  # Triton makes a constant of an argument that is 1
        constants["stride_bias"] = 1
    types = dict.fromkeys(names, "i32")
    groups: tuple[tuple[Iterable[str], str], ...] = (
        (_FLOATS, f"*{job.dtype}"),
        (_SUMS, "*fp64"),
        (_INDICES, "*i32"),
        (("entry_starts", "entry_places"), "*i64"),
        (("pieces",), "*fp64" if job.dtype == "fp64" else "*fp32"),
        (("masks",), "*i32" if job.dtype == "fp64" and "y" in names else "*u8"),
        (("alpha", "beta"), "fp64"),
        (("out",) if job.out else (), f"*{job.out}"),
        (constants, "constexpr"),
    )
    for group, kind in groups:
        types |= {name: kind for name in group if name in types}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if types[n][0] == "*" or n in _ALIGNED}
    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[2:]), 32)
    source = ASTSource(job.kernel, types, {(names.index(name),): value for name, value in constants.items()}, aligned)
    record: dict[str, Any] = {"kernel": job.kernel.__name__, "arch": arch, "dtype": job.dtype, "out": job.out}
    record |= {name: value for name, value in job.constants.items() if name != "ACCUMULATE"}
    try:
        built = triton.compile(source, target=target, options={"num_warps": job.warps, "num_stages": job.stages})
    except RuntimeError as error:
        return record | {"faults": [f"does not compile: {error}"]}
    found = _read(built, arch)
    text = found.pop("text")
    return record | found | {"faults": faults(job, arch, text, **found)}


def _read(built: Any, arch: str) -> dict[str, Any]:
    shared = built.metadata.shared
    if arch.startswith("gfx"):
        text = built.asm["amdgcn"]
        registers, spilled = (_number(rf"\.{key}:\s*(\d+)", text) for key in ("vgpr_count", "vgpr_spill_count"))
        doubles = len(re.findall(r"\bv_\w+_f64", text))
    else:
        text = built.asm["ptx"]
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers, stack, local = (_number(rf"{key}:(\d+)", usage) for key in ("REG", "STACK", "LOCAL"))
        spilled, doubles = stack + local, len(re.findall(r"^\s*(?!ld|st|mov)[a-z][\w.]*\.f64\b", text, re.MULTILINE))
    return {"registers": registers, "spilled": spilled, "shared": shared, "doubles": doubles, "text": text}


def faults(job: Job, arch: str, text: str, registers: int, spilled: int, shared: int, doubles: int) -> list[str]:
    """What is wrong with a compiled kernel; empty if nothing is."""
    nvidia = arch.startswith("sm")
    most = 255 if nvidia else 512
    found = [(spilled > 0, f"{spilled} bytes spilled"), (registers > most, f"{registers} registers"),
             (shared > SHARED[arch], f"{shared} bytes of shared memory")]  # fmt: skip
    if job.is_product:
        wanted = INSTRUCTIONS[arch] if job.dtype == "bf16" else "mma" if arch in ("sm80", "sm90") else ""
        ahead = not nvidia or job.stages == 1 or re.search(r"cp\.async\.c[ag]", text)
        found += [(wanted not in text, f"no {wanted}"), (not ahead, "operands are not loaded ahead"),
                  (job.dtype != "fp64" and doubles > _FACTORS, f"{doubles} operations in fp64")]  # fmt: skip
    return [fault for is_there, fault in found if is_there]


def _number(expression: str, text: str) -> int:
    found = re.search(expression, text)
    if found is None:
        raise ValueError(f"no {expression!r} in what the compiler says")
    return int(found[1])


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each kernel; 1 if one has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=sorted(INSTRUCTIONS), default=list(INSTRUCTIONS))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only one of N kernels")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    jobs = [(arch, job) for arch in options.arch for job in (*products(arch), *others())]
    records = [compiled(job, arch) for arch, job in jobs[:: options.every]]
    told = [json.dumps(records)] if options.json else [" ".join(f"{k}={v}" for k, v in one.items()) for one in records]
    print("\n".join(told))
    return 1 if any(record["faults"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
