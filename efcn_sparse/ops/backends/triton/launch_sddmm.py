"""SDDMM: one launch, and a second one where the batch was cut into stretches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from efcn_sparse.ops.backends.triton import plan
from efcn_sparse.ops.backends.triton.device import device_of, must_widen
from efcn_sparse.ops.backends.triton.failure import launch_named
from efcn_sparse.ops.backends.triton.language import dtype_of_sums
from efcn_sparse.ops.backends.triton.memory import remembered
from efcn_sparse.ops.backends.triton.sddmm_kernel import sddmm_kernel, sum_stretches_kernel
from efcn_sparse.pattern import Structure

_SUM_BLOCK = 1024


def run(
    out: Tensor, a: Tensor, b: Tensor, structure: Structure, shape: Sequence[int], alpha: float, beta: float
) -> None:
    """out = alpha · (aᵀ b at the stored blocks) + beta · out, zero outside the support."""
    if must_widen(a.dtype):
        wide = out.float()
        run(wide, a.float(), b.float(), structure, shape, alpha, beta)
        out.copy_(wide)
        return
    height, width = out.shape[1:]
    (batch, out_features), in_features = a.shape, b.shape[1]
    problem = plan.Problem("sddmm", structure, height, width, batch, a.dtype, device_of(a))
    config = plan.configure(problem)
    rows, tasks = plan.super_rows(problem, config.members), plan.sddmm_tasks(problem, config)
    programs = tasks.shape[0] * -(-config.members * height // config.block_n)
    count, stretch = plan.stretches(problem, config, programs)
    sums, sums_dtype = dtype_of_sums(a.dtype)
    pieces = out if count == 1 else a.new_empty((count, *out.shape), dtype=sums_dtype)
    common = dict(
        HEIGHT=height, WIDTH=width, MASKED=structure.mask_index.numel() > 0,
        RAGGED=out_features % height != 0 or in_features % width != 0, ADD=beta != 0.0, ACCUMULATE=sums,
    )  # fmt: skip
    with launch_named("sddmm_kernel", config, a=a, b=b, out=out):
        sddmm_kernel[(programs * count,)](
            out, a, b, pieces, tasks, rows.members, rows.cols, rows.blocks, structure.mask_index, structure.masks,
            batch, stretch, tasks.shape[0], out_features, in_features, a.stride(0), b.stride(0), out.numel(),
            alpha, beta,
            MEMBERS=config.members, BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k,
            SPLIT=count > 1, PRECISION=plan.input_precision(a.dtype),
            num_warps=config.warps, num_stages=config.stages, **common,
        )  # fmt: skip
    if count > 1:
        rows_of_blocks = remembered(structure, "rows of blocks", lambda: _rows_of_blocks(structure))
        with launch_named("sum_stretches_kernel", config, out=out, pieces=pieces):
            sum_stretches_kernel[(-(-out.numel() // _SUM_BLOCK),)](
                out, pieces, rows_of_blocks, structure.col_indices, structure.mask_index, structure.masks,
                count, out.numel(), out_features, in_features, alpha, beta, BLOCK=_SUM_BLOCK, **common,
            )  # fmt: skip


def _rows_of_blocks(structure: Structure) -> Tensor:
    rows = structure.row_indices.new_empty(structure.row_indices.shape)
    rows[structure.block_order.long()] = structure.row_indices
    return rows
