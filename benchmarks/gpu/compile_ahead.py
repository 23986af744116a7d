"""Every tuned configuration compiled for GPUs that need not be here, and what came out.

    python -m benchmarks.gpu.compile_ahead [--arch sm90 ...] [--kernels products plain] [--everything-on]
                                           [--descriptors | --fp32-out]
                                           [--summary | --json] [--limit N]

No GPU is needed: Triton carries its compilers. A kernel passes if it multiplies with the tensor instruction of its
architecture (fp32 in IEEE precision has none), keeps everything in registers, fits registers and shared memory,
loads its operands ahead of their use as deep as its stages say, and makes no sum pass the slow fp64 pipe.
``--everything-on`` compiles the most that a kernel may have to do: masks, ragged edges, split rows, beta.
``--fp32-out`` compiles 16-bit SDDMM added to an fp32 output, as mixed precision needs it for a step inside.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.binary import NOTHING, REGISTER_LIMIT, SHARED_LIMIT, read
from efcn_sparse.ops.backends.triton import work
from efcn_sparse.ops.backends.triton.sddmm_kernel import sddmm_kernel
from efcn_sparse.ops.backends.triton.spmm_kernel import spmm_kernel
from efcn_sparse.ops.backends.triton.tuning import OPERATIONS, Config, Row, rows, trimmed

INSTRUCTIONS = {"sm80": "mma.sync", "sm90": "wgmma.mma_async", "sm100": "tcgen05.mma", "gfx942": "v_mfma"}
EVERYTHING_ON = {"MASKED": True, "RAGGED": True, "SPLIT": True, "ADD": True}
FP32_OUT = {"ADD": True}
_TYPES = {16: "bf16", 32: "fp32", 64: "fp64"}
_FLOATS = ("y", "x", "values", "bias", "out", "a", "b")
_FACTORS = 4  # alpha and beta come in fp64, and are rounded once for each part of a tile
_ALIGNED = (*_FLOATS, "pieces", "tasks", "members", "entry_cols", "entry_blocks")
_ALIGNED_NUMBERS = ("stride_x", "stride_a", "stride_b", "in_features", "out_features")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture; ``prefetches`` counts the asynchronous copies into shared memory."""

    operation: str
    arch: str
    dtype: str
    block: str
    tile: str
    members: int
    warps: int
    stages: int
    instruction: str
    instructions: int
    registers: int
    spilled_bytes: int
    shared: int
    prefetches: int
    doubles: int
    tiles_fetched: int
    described: bool = False
    failed: str = ""

    def faults(self) -> list[str]:
        """What is wrong with it; empty if nothing is."""
        if self.failed:
            return [self.failed]
        found = []
        if self.instruction and not self.instructions:
            found.append(f"no {self.instruction}")
        if self.spilled_bytes:
            found.append(f"{self.spilled_bytes} bytes spilled")
        if self.registers > REGISTER_LIMIT[self.arch]:
            found.append(f"{self.registers} registers")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared} bytes of shared memory")
        if self.arch.startswith("sm") and self.stages > 1 and not (self.prefetches or self.tiles_fetched):
            found.append("operands are not loaded ahead")
        if self.described and not self.tiles_fetched:
            found.append("no tile is fetched through a descriptor")
        if self.doubles > _FACTORS and self.dtype != "fp64" and self.operation in OPERATIONS:
            found.append(f"{self.doubles} operations in fp64")
        return found


def compile_row(row: Row, members: int, *, out: str = "", **flags: Any) -> Compiled:
    """The kernel of a row of the tuning table, for super-rows of that size.

    Args:
        out: the type of SDDMM's output, where it is not that of the operands.
        flags: compile-time arguments of the kernel that differ from the plain case, such as ``MASKED=True``.
    """
    case, config = row.case, trimmed(row.config, row.case.height, members)
    kernel, constants = constants_of(case.operation, case.bits, case.height, case.width, config)
    constants |= flags
    if case.width % config.block_k:
        constants |= {"DESCRIBED": False} if "DESCRIBED" in constants else {}
    target = (
        GPUTarget("hip", case.arch, 64) if case.arch.startswith("gfx") else GPUTarget("cuda", int(case.arch[2:]), 32)
    )
    kind = _TYPES[case.bits]
    source = ASTSource(kernel, *signature_of(kernel, constants, kind, out))
    exact = case.bits == 32 and constants["PRECISION"] == "ieee"
    instruction = "" if exact else _instruction(case.arch, case.bits)
    try:
        options = {"num_warps": config.warps, "num_stages": config.stages}
        binary, failed = read(triton.compile(source, target=target, options=options), case.arch, instruction), ""
    except RuntimeError as error:
        binary, failed = NOTHING, f"does not compile: {error}"
    return Compiled(
        case.operation, case.arch, f"{kind} → {out}" if out else kind, f"{case.height}×{case.width}",
        f"{config.block_m}×{config.block_n}×{config.block_k}", members, config.warps, config.stages, instruction,
        **asdict(binary), described=constants.get("DESCRIBED", False), failed=failed,
    )  # fmt: skip


def _instruction(arch: str, bits: int) -> str:
    if bits == 64 and arch.startswith("sm"):
        return "mma.sync" if arch != "sm100" else ""
    if bits == 32 and arch == "gfx942":
        return ""
    # the warp-group product takes fp32 operands in one order only; where it cannot, Triton takes mma.sync
    return "mma" if bits == 32 else INSTRUCTIONS[arch]


def constants_of(operation: str, bits: int, height: int, width: int, config: Config) -> tuple[Any, dict[str, Any]]:
    """The kernel of an operation, and its compile-time arguments in the plain case."""
    common = dict(
        HEIGHT=height, WIDTH=width, MEMBERS=config.members, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_K=config.block_k, SPLIT=False, MASKED=False, RAGGED=False, ADD=False,
        PRECISION="tf32" if bits == 32 else "ieee", ACCUMULATE=tl.float64 if bits == 64 else tl.float32,
    )  # fmt: skip
    if operation == "sddmm":
        return sddmm_kernel, common
    steps = (1, height) if operation == "spmm_t" else (width, 1)
    return spmm_kernel, common | dict(
        STEP_OUT=steps[0], STEP_IN=steps[1], SWIZZLE=config.swizzle, HAS_BIAS=True, DESCRIBED=config.descriptors
    )


def signature_of(
    kernel: Any, constants: dict[str, Any], kind: str, out: str = ""
) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Types, constants and alignments of its arguments, as at a launch."""
    names = kernel.arg_names
    types = dict.fromkeys(names, "i32")
    types |= dict.fromkeys((name for name in _FLOATS if name in types), f"*{kind}")
    if out:
        types["out"] = f"*{out}"
    types |= dict.fromkeys(("tasks", "members", "entry_cols", "entry_blocks", "mask_index"), "*i32")
    types |= {
        "pieces": "*fp64" if kind == "fp64" else "*fp32",
        "masks": "*i32" if kind == "fp64" and "y" in names else "*u8",
        "alpha": "fp64",
        "beta": "fp64",
    }
    if "stride_bias" in types:  # as at a launch, where Triton makes a constant of an argument that is 1
        constants = constants | {"stride_bias": 1}
    types |= dict.fromkeys(constants, "constexpr")
    if constants.get("DESCRIBED"):
        types["x"] = f"tensordesc<{kind}[{constants['BLOCK_M']}, {constants['BLOCK_K']}]>"
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in (*_ALIGNED, *_ALIGNED_NUMBERS)
               if n in names and not types[n].startswith("tensordesc")}  # fmt: skip
    return types, {(names.index(name),): value for name, value in constants.items()}, aligned


def table(compiled: Sequence[Compiled]) -> str:
    """Markdown: every kernel."""
    heads = ["kernel", "GPU", "type", "block", "tile M×N×K", "rows", "warps", "stages", "instruction", "registers",
             "spilled", "shared KiB"]  # fmt: skip
    return markdown(heads, [
        [c.operation, c.arch, c.dtype, c.block, c.tile, c.members, c.warps, c.stages, _found(c), c.registers,
         c.spilled_bytes, f"{c.shared / 1024:.0f}"]
        for c in compiled
    ])  # fmt: skip


def summary(compiled: Sequence[Compiled]) -> str:
    """Markdown: the most of each kind of kernel."""
    kinds: dict[tuple[str, str, str], list[Compiled]] = {}
    for c in compiled:
        kinds.setdefault((c.arch, c.operation, c.dtype), []).append(c)
    rows = []
    for (arch, operation, dtype), of in kinds.items():
        wanted = sorted({c.instruction for c in of if c.instruction})
        rows.append([
            arch, operation, dtype, len(of), ", ".join(f"`{name}`" for name in wanted) or "–",
            sum(c.instructions > 0 for c in of) if wanted else "–", max(c.registers for c in of),
            max(c.spilled_bytes for c in of), f"{max(c.shared for c in of) / 1024:.0f}",
            "; ".join(sorted({fault for c in of for fault in c.faults()})) or "none",
        ])  # fmt: skip
    heads = ["GPU", "kernel", "type", "compiled", "instruction", "have it", "most registers", "most spilled",
             "most shared KiB", "faults"]  # fmt: skip
    return markdown(heads, rows)


def markdown(heads: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _found(c: Compiled) -> str:
    return f"{c.instructions} `{c.instruction}`" if c.instruction else "–"


def compile_all(
    archs: list[str],
    limit: int | None = None,
    operations: Sequence[str] = OPERATIONS,
    bits: Sequence[int] = tuple(_TYPES),
    **flags: Any,
) -> list[Compiled]:
    """Each row for each of those architectures, with super-rows of the smallest and the largest size it may get."""
    compiled = []
    for arch in archs:
        jobs = [
            (row, members)
            for row in rows()
            if row.case.arch == arch and row.case.operation in operations and row.case.bits in bits
            for members in ([row.config.members] if row.config.members else _sizes(row))
        ]
        distinct = {}
        for row, members in jobs:
            case = row.case
            cut = trimmed(row.config, case.height, members)
            distinct[case.operation, case.bits, case.height, case.width, cut, members] = row
        chosen = list(distinct.items())
        step = 1 if limit is None else max(1, len(chosen) // limit)
        compiled += [compile_row(row, key[-1], **flags) for key, row in chosen[::step]]
    return compiled


def _sizes(row: Row) -> list[int]:
    sizes = work.candidates(row.case.height, row.config.block_n)
    return sorted({sizes[0], sizes[-1]})


def compile_plain(archs: list[str]) -> list[Compiled]:
    """The kernels without products for each of those architectures: the subspace reading, sums of pieces."""
    from benchmarks.gpu.ahead_plain import TYPES, compile_reading, compile_sums

    return [
        Compiled(name, arch, dtype, "–", cut, 1, 4, 1, "", **asdict(binary))
        for arch in archs
        for dtype in TYPES
        for name, cut, binary in (*compile_sums(arch, dtype), *compile_reading(arch, dtype))
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print a table; exit with 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=sorted(INSTRUCTIONS), default=list(INSTRUCTIONS))
    parser.add_argument("--kernels", nargs="+", choices=("products", "plain"), default=["products"])
    parser.add_argument("--everything-on", action="store_true")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--descriptors", action="store_true", help="x of SpMM through a tensor descriptor (sm90, sm100)")
    kind.add_argument("--fp32-out", action="store_true", help="16-bit SDDMM added to an fp32 output, and nothing else")
    parser.add_argument(
        "--limit", type=int, help="about this many products for each architecture, spread over the table"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true")
    shape.add_argument("--summary", action="store_true", help="one line for each kind of kernel")
    options = parser.parse_args(arguments)
    if options.descriptors and set(options.arch) - {"sm90", "sm100"}:
        parser.error(f"--descriptors must be for sm90 or sm100, got {options.arch}")
    flags: dict[str, Any] = EVERYTHING_ON if options.everything_on else {}
    if options.descriptors:
        flags = {"DESCRIBED": True} | (flags and flags | {"RAGGED": False})
    compiled: list[Compiled] = []
    if options.fp32_out:
        for more in (flags | FP32_OUT, *([flags | FP32_OUT | {"SPLIT": False}] if flags else [])):
            compiled += compile_all(options.arch, options.limit, ["sddmm"], [16], out="fp32", **more)
    elif "products" in options.kernels:
        compiled += compile_all(
            options.arch, options.limit, ["spmm", "spmm_t"] if options.descriptors else OPERATIONS, **flags
        )
        if (
            options.everything_on and not options.descriptors
        ):  # a batch that is cut leaves masks and beta to the sum of its stretches
            compiled += compile_all(options.arch, options.limit, ["sddmm"], **(EVERYTHING_ON | {"SPLIT": False}))
    if "plain" in options.kernels:
        compiled += compile_plain(options.arch)
    faults = [(c, c.faults()) for c in compiled if c.faults()]
    if options.json:
        print(json.dumps({"torch": torch.__version__, "triton": triton.__version__,
                          "kernels": [asdict(c) | {"faults": c.faults()} for c in compiled]}))  # fmt: skip
    else:
        print(f"Triton {triton.__version__}; {len(compiled)} kernels, {len(faults)} with faults.\n")
        print(summary(compiled) if options.summary else table(compiled))
    for c, found in faults:
        what = f"{c.operation} {c.arch} {c.dtype} {c.block} {c.tile} rows {c.members}"
        print(f"{what}: {', '.join(found)}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
