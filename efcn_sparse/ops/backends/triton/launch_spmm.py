"""SpMM: one launch, and a second one where long rows were split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efcn_sparse.ops.backends.triton import descriptors, plan
from efcn_sparse.ops.backends.triton.device import device_of, must_widen
from efcn_sparse.ops.backends.triton.failure import launch_named
from efcn_sparse.ops.backends.triton.language import dtype_of_sums
from efcn_sparse.ops.backends.triton.memory import remembered
from efcn_sparse.ops.backends.triton.spmm_kernel import spmm_kernel, sum_pieces_kernel
from efcn_sparse.pattern import Structure


def run(
    y: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    structure: Structure,
    shape: Sequence[int],
    transpose: bool,
    alpha: float,
    beta: float,
) -> None:
    """y = alpha · (x Wᵀ + bias) + beta · y; with ``transpose``, x W."""
    if must_widen(x.dtype):
        wide = y.float()
        run(
            wide,
            x.float(),
            values.float(),
            None if bias is None else bias.float(),
            structure,
            shape,
            transpose,
            alpha,
            beta,
        )
        y.copy_(wide)
        return
    block_rows, block_cols = values.shape[1:]
    height, width = (block_cols, block_rows) if transpose else (block_rows, block_cols)
    steps = (1, block_cols) if transpose else (block_cols, 1)
    batch, in_features = x.shape
    problem = plan.Problem("spmm_t" if transpose else "spmm", structure, height, width, batch, x.dtype, device_of(x))
    config = plan.configure(problem)
    rows, todo = plan.super_rows(problem, config.members), plan.spmm_tasks(problem, config)
    sums, sums_dtype = dtype_of_sums(x.dtype)
    pieces = y if todo.slots == 0 else x.new_empty((todo.slots, batch, config.members * height), dtype=sums_dtype)
    given_bias, stride_bias = (y, 0) if bias is None else (bias, bias.stride(0))
    tiles_m = -(-batch // config.block_m)
    tiles_n = -(-config.members * height // config.block_n)
    n_tasks = todo.tasks.shape[0]
    masks = structure.masks
    if x.dtype == torch.float64 and masks.numel():  # Triton 3.6 compiles no fp64 product that hangs on a load of bytes
        masks = remembered(structure, "wide masks", lambda: structure.masks.int())
    common = dict(
        HEIGHT=height, MEMBERS=config.members, HAS_BIAS=bias is not None, ADD=beta != 0.0, ACCUMULATE=sums,
    )  # fmt: skip
    described = config.descriptors and descriptors.fits(x, width, config, problem.device)
    tiles_of_x = descriptors.describe(x, config) if described else x
    with launch_named("spmm_kernel", config, x=x, values=values, y=y):
        spmm_kernel[(n_tasks * tiles_n * tiles_m,)](
            y, tiles_of_x, values, given_bias, pieces, todo.tasks, rows.members, rows.cols, rows.blocks,
            structure.mask_index, masks,
            batch, n_tasks, in_features, y.shape[1], x.stride(0), stride_bias, alpha, beta,
            WIDTH=width, STEP_OUT=steps[0], STEP_IN=steps[1],
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, SWIZZLE=config.swizzle,
            SPLIT=todo.slots > 0, MASKED=structure.mask_index.numel() > 0, RAGGED=in_features % width != 0,
            PRECISION=plan.input_precision(x.dtype), DESCRIBED=described,
            num_warps=config.warps, num_stages=config.stages, **common,
        )  # fmt: skip
    if todo.slots:
        sum_m, sum_n = plan.sum_tile(config)
        with launch_named("sum_pieces_kernel", config, y=y, pieces=pieces):
            sum_pieces_kernel[(todo.sums.shape[0] * tiles_n * -(-batch // sum_m),)](
                y, given_bias, pieces, todo.sums, rows.members, batch, y.shape[1], stride_bias, alpha, beta,
                BLOCK_M=sum_m, BLOCK_N=sum_n, num_warps=plan.SUM_WARPS, **common,
            )  # fmt: skip
