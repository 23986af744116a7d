"""The kernels without tensor instructions, compiled for GPUs that need not be here: sums, and the subspace reading."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.binary import Binary, read
from efcn_sparse.ops.backends.triton import plan
from efcn_sparse.ops.backends.triton.sddmm_kernel import sum_stretches_kernel
from efcn_sparse.ops.backends.triton.spmm_kernel import sum_pieces_kernel
from efcn_sparse.ops.backends.triton.tuning import rows
from efcn_sparse.subspace.backends.triton import subspace_kernel

TYPES = {"fp32": "*fp32", "bf16": "*bf16", "fp64": "*fp64"}
BITS = {"fp32": 32, "bf16": 16, "fp64": 64}
# as its schedule cuts: copies × elements of a program, from a bias to large blocks; kernel entries × their places
SLICES = ((32, 64), (4, 512), (2, 1024))
ENTRIES = ((256, 1), (16, 16), (1, 256))
_INDICES = ("maps", "class_starts", "blocks_by_class", "tasks", "sums", "members", "rows_of_blocks", "cols_of_blocks",
            "mask_index")  # fmt: skip
_SUMS = ("totals", "squares", "slot_totals", "slot_squares", "off_local", "parts")
_VALUES = ("values", "projected", "y", "bias", "out")


def compile_sums(arch: str, dtype: str) -> Iterator[tuple[str, str, Binary]]:
    """The second launch of split rows and split batches, with everything that it may have to do."""
    sums = tl.float64 if dtype == "fp64" else tl.float32
    common = {"HEIGHT": 64, "ADD": True, "ACCUMULATE": sums}
    tuned = {plan.sum_tile(row.config) for row in rows() if row.case.arch == arch and row.case.bits == BITS[dtype]}
    for m, n in sorted(tuned):
        pieces = common | {"MEMBERS": n // 64 or 1, "BLOCK_M": m, "BLOCK_N": n, "HAS_BIAS": True}
        yield "sum_pieces", f"{m}×{n}", _compiled(sum_pieces_kernel, arch, dtype, pieces, plan.SUM_WARPS)
    stretches = common | {"WIDTH": 48, "BLOCK": 1024, "MASKED": True, "RAGGED": True}
    yield "sum_stretches", "1024", _compiled(sum_stretches_kernel, arch, dtype, stretches)


def compile_reading(arch: str, dtype: str) -> Iterator[tuple[str, str, Binary]]:
    """Name, cut and binary of each kernel for values of that type."""
    for height, width in SLICES:
        cut = {"HEIGHT": height, "WIDTH": width}
        text = f"{height}×{width}"
        yield "read_copies", text, _compiled(subspace_kernel.read_copies_kernel, arch, dtype, cut)
        yield "project", text, _compiled(subspace_kernel.project_kernel, arch, dtype, cut | {"TIE": height != 4})
    width = SLICES[-1][1]
    yield "add_slots", str(width), _compiled(subspace_kernel.add_slots_kernel, arch, dtype, {"WIDTH": width})
    for (entries, places), write in itertools.product(ENTRIES, (False, True)):
        cut = {"ENTRIES": entries, "PLACES": places, "WRITE": write}
        name = "join_places" + (", writing" if write else "")
        yield name, f"{entries}×{places}", _compiled(subspace_kernel.join_places_kernel, arch, dtype, cut)


def _compiled(kernel: Any, arch: str, dtype: str, constants: dict[str, Any], warps: int = 4) -> Binary:
    names = kernel.arg_names
    types = dict.fromkeys(names, "i32")
    types |= {name: "*i32" for name in _INDICES if name in types}
    types |= {name: "*i64" for name in ("entry_starts", "entry_places") if name in types}
    types |= {name: "*fp64" for name in _SUMS if name in types}
    types |= {name: TYPES[dtype] for name in _VALUES if name in types}
    types |= {name: "*fp64" if dtype == "fp64" else "*fp32" for name in ("pieces",) if name in types}
    types |= {name: "*u8" for name in ("masks",) if name in types}
    types |= {name: "fp64" for name in ("alpha", "beta") if name in types}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name].startswith("*")}
    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[2:]), 32)
    source = ASTSource(kernel, types, {(names.index(name),): value for name, value in constants.items()}, aligned)
    return read(triton.compile(source, target=target, options={"num_warps": warps}), arch, "")
