"""SpMM: y = alpha · (x Wᵀ + bias) + beta · y by either walk. The launcher, then the kernels.

One launch computes a tile of y for each super-row; a second one adds the pieces of long rows, where rows were split.
No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from efcn_sparse.ops.backends.triton import plan
from efcn_sparse.ops.backends.triton.device import device_of, must_widen
from efcn_sparse.ops.backends.triton.launch import cut, dtype_of_sums, input_precision, launch_named, parts_of
from efcn_sparse.ops.backends.triton.schedule import remembered
from efcn_sparse.ops.backends.triton.tiles import Config
from efcn_sparse.pattern import Structure

_SUMS_OF_A_PROGRAM, SUM_WARPS = 4096, 4  # more sums, each with its addresses, do not fit the registers


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
        wide_bias = None if bias is None else bias.float()
        run(wide, x.float(), values.float(), wide_bias, structure, shape, transpose, alpha, beta)
        y.copy_(wide)
        return
    block_rows, block_cols = values.shape[1:]
    height, width = (block_cols, block_rows) if transpose else (block_rows, block_cols)
    steps = (1, block_cols) if transpose else (block_cols, 1)
    batch, in_features = x.shape
    problem = plan.Problem(
        "spmm_t" if transpose else "spmm", structure, height, width, batch, x.dtype, device_of(x.device)
    )
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
    with launch_named("spmm_kernel", config, x=x, values=values, y=y):
        spmm_kernel[(n_tasks * tiles_n * tiles_m,)](
            y, x, values, given_bias, pieces, todo.tasks, rows.members, rows.cols, rows.blocks,
            structure.mask_index, masks,
            batch, n_tasks, in_features, y.shape[1], x.stride(0), stride_bias, alpha, beta,
            WIDTH=width, STEP_OUT=steps[0], STEP_IN=steps[1],
            BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=config.block_k, SWIZZLE=config.swizzle,
            SPLIT=todo.slots > 0, MASKED=structure.mask_index.numel() > 0, RAGGED=in_features % width != 0,
            PRECISION=input_precision(x.dtype),
            num_warps=config.warps, num_stages=config.stages, **common,
        )  # fmt: skip
    if todo.slots:
        sum_m, sum_n = sum_tile(config)
        with launch_named("sum_pieces_kernel", config, y=y, pieces=pieces):
            sum_pieces_kernel[(todo.sums.shape[0] * tiles_n * -(-batch // sum_m),)](
                y, given_bias, pieces, todo.sums, rows.members, batch, y.shape[1], stride_bias, alpha, beta,
                BLOCK_M=sum_m, BLOCK_N=sum_n, num_warps=SUM_WARPS, **common,
            )  # fmt: skip


def sum_tile(config: Config) -> tuple[int, int]:
    """M and N of a program that adds the pieces of split rows."""
    return min(config.block_m, max(1, _SUMS_OF_A_PROGRAM // config.block_n)), config.block_n


@triton.jit
def _look_up(
    entry_cols, entry_blocks, first, entries, step, member, inside_n,
    WIDTH: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The block columns of one step on the K axis, and their blocks in ``values``, -1 where a member has none."""
    if WIDTH % BLOCK_K == 0:  # one entry for the whole step
        steps = entries * (WIDTH // BLOCK_K)
        there = step < steps
        entry = first + step // (WIDTH // BLOCK_K)
        col = tl.load(entry_cols + entry, mask=there, other=0)
        if MEMBERS == 1:
            block = tl.load(entry_blocks + entry, mask=there, other=-1)
        else:
            block = tl.load(
                entry_blocks + entry * MEMBERS + member, mask=inside_n & (step + 0 * member < steps), other=-1
            )[None, :]
    else:
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        here = k < entries * WIDTH
        entry = first + k // WIDTH
        col = tl.load(entry_cols + entry, mask=here, other=0)
        if MEMBERS == 1:
            block = tl.load(entry_blocks + entry, mask=here, other=-1)[:, None]
        else:
            which = entry[:, None] * MEMBERS + member[None, :]
            block = tl.load(entry_blocks + which, mask=here[:, None] & inside_n[None, :], other=-1)
    return col, block


# batches of every size run one binary
@triton.jit(do_not_specialize=["batch", "n_tasks"])
def spmm_kernel(
    y, x, values, bias, pieces, tasks, members, entry_cols, entry_blocks, mask_index, masks,
    batch, n_tasks, in_features, out_features, stride_x, stride_bias,
    alpha: tl.float64, beta: tl.float64,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, STEP_OUT: tl.constexpr, STEP_IN: tl.constexpr,
    MEMBERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr, SPLIT: tl.constexpr, MASKED: tl.constexpr, RAGGED: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """``y[m, n]`` for the batch rows m of one tile and the outputs n of one super-row.

    HEIGHT and WIDTH are the sides of a block along y and along x, STEP_OUT and STEP_IN its strides in ``values``. The
    outputs of a super-row's MEMBERS lie side by side on the N axis, the columns of its entries one behind the other on
    the K axis, so that neither has to be a power of two.
    """
    TILES_N: tl.constexpr = (MEMBERS * HEIGHT + BLOCK_N - 1) // BLOCK_N
    # programs that run together share tiles of x and of values
    tiles_m = tl.cdiv(batch, BLOCK_M)
    columns = n_tasks * TILES_N
    band = tl.program_id(0) // (SWIZZLE * tiles_m)
    within = tl.program_id(0) % (SWIZZLE * tiles_m)
    band_width = tl.minimum(columns - band * SWIZZLE, SWIZZLE)
    column = band * SWIZZLE + within % band_width
    tile_m = within // band_width
    task, tile_n = column // TILES_N, column % TILES_N

    group = tl.load(tasks + task * 4)
    first = tl.load(tasks + task * 4 + 1).to(tl.int64)
    entries = tl.load(tasks + task * 4 + 2)
    slot = tl.load(tasks + task * 4 + 3)

    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_of_x = x + tl.where(m < batch, m, 0)[:, None] * stride_x
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    member, o = n // HEIGHT, n % HEIGHT
    inside_n = n < MEMBERS * HEIGHT

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUMULATE)
    # the entry of a step is looked up one step ahead: loads that hang on a load of their own step are not pipelined
    col, block = _look_up(
        entry_cols, entry_blocks, first, entries, 0, member, inside_n, WIDTH, MEMBERS, BLOCK_N, BLOCK_K
    )
    for step in range(0, tl.cdiv(entries * WIDTH, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        if WIDTH % BLOCK_K == 0:
            # by a product and not a remainder, so that the compiler sees how aligned it is
            j = (step % (WIDTH // BLOCK_K)) * BLOCK_K + tl.arange(0, BLOCK_K)
        else:
            j = k % WIDTH
        c = col * WIDTH + j
        here = k < entries * WIDTH
        if RAGGED:
            here = here & (c < in_features)
        if RAGGED or WIDTH % BLOCK_K != 0:
            a = tl.load(rows_of_x + c[None, :], mask=here[None, :], other=0.0)
        else:
            a = tl.load(rows_of_x + c[None, :])
        inside_block = j[:, None] * STEP_IN + o[None, :] * STEP_OUT
        counts = here[:, None] & inside_n[None, :]
        if MEMBERS != 1 or WIDTH % BLOCK_K != 0:
            counts = counts & (block >= 0)
        if MASKED:
            mask = tl.load(mask_index + block, mask=block >= 0, other=-1) + tl.zeros_like(inside_block)
            of_mask = masks + mask.to(tl.int64) * (HEIGHT * WIDTH) + inside_block
            counts = counts & (tl.load(of_mask, mask=counts & (mask >= 0), other=1) != 0)
        places = values + block.to(tl.int64) * (HEIGHT * WIDTH) + inside_block
        if MEMBERS == 1 and WIDTH % BLOCK_K == 0 and HEIGHT % BLOCK_N == 0 and not RAGGED and not MASKED:
            b = tl.load(places)
        else:
            b = tl.load(places, mask=counts, other=0.0)
        col, block = _look_up(
            entry_cols, entry_blocks, first, entries, step + 1, member, inside_n, WIDTH, MEMBERS, BLOCK_N, BLOCK_K
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=ACCUMULATE)

    members += group * MEMBERS
    if SPLIT:
        if slot >= 0:
            _keep(acc, pieces + slot.to(tl.int64) * batch * (MEMBERS * HEIGHT), m, tile_n, batch,
                  HEIGHT, MEMBERS, BLOCK_M, BLOCK_N)  # fmt: skip
        else:
            _finish(acc, y, bias, members, m, tile_n, batch, out_features, stride_bias, alpha, beta,
                    HEIGHT, MEMBERS, BLOCK_M, BLOCK_N, HAS_BIAS, ADD)  # fmt: skip
    else:
        _finish(acc, y, bias, members, m, tile_n, batch, out_features, stride_bias, alpha, beta,
                HEIGHT, MEMBERS, BLOCK_M, BLOCK_N, HAS_BIAS, ADD)  # fmt: skip


@triton.jit
def _keep(
    acc, pieces, m, tile_n, batch,
    HEIGHT: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A piece of a split super-row, as it is."""
    PARTS: tl.constexpr = parts_of(BLOCK_M, BLOCK_N)
    parts = cut(acc, BLOCK_M, BLOCK_N, PARTS)
    for part in tl.static_range(PARTS):
        n = tile_n * BLOCK_N + part * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS)
        inside = (m < batch)[:, None] & (n < MEMBERS * HEIGHT)[None, :]
        tl.store(pieces + m[:, None] * (MEMBERS * HEIGHT) + n[None, :], parts[part], mask=inside)


@triton.jit(do_not_specialize=["batch"])
def sum_pieces_kernel(
    y, bias, pieces, sums, members, batch, out_features, stride_bias,
    alpha: tl.float64, beta: tl.float64,
    HEIGHT: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """``y`` of one split super-row: its pieces are added in ascending order."""
    TILES_N: tl.constexpr = (MEMBERS * HEIGHT + BLOCK_N - 1) // BLOCK_N
    tiles_m = tl.cdiv(batch, BLOCK_M)
    tile_m, column = tl.program_id(0) % tiles_m, tl.program_id(0) // tiles_m
    which, tile_n = column // TILES_N, column % TILES_N
    group = tl.load(sums + which * 3)
    slot = tl.load(sums + which * 3 + 1).to(tl.int64)
    count = tl.load(sums + which * 3 + 2)
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = n < MEMBERS * HEIGHT
    inside = (m < batch)[:, None] & inside_n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUMULATE)
    for piece in range(0, count):
        places = pieces + ((slot + piece) * batch + m[:, None]) * (MEMBERS * HEIGHT) + n[None, :]
        acc += tl.load(places, mask=inside, other=0.0)
    _finish(acc, y, bias, members + group * MEMBERS, m, tile_n, batch, out_features, stride_bias, alpha, beta,
            HEIGHT, MEMBERS, BLOCK_M, BLOCK_N, HAS_BIAS, ADD)  # fmt: skip


@triton.jit
def _finish(
    acc, y, bias, members, m, tile_n, batch, out_features, stride_bias, alpha, beta,
    HEIGHT: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """``y ← alpha · (acc + bias) + beta · y`` for the outputs that exist."""
    PARTS: tl.constexpr = parts_of(BLOCK_M, BLOCK_N)
    parts = cut(acc, BLOCK_M, BLOCK_N, PARTS)
    for part in tl.static_range(PARTS):
        n = tile_n * BLOCK_N + part * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS)
        row = tl.load(members + n // HEIGHT, mask=n < MEMBERS * HEIGHT, other=-1)
        out = row.to(tl.int64) * HEIGHT + n % HEIGHT
        exists = (row >= 0) & (out < out_features)
        scale = tl.full((), alpha, acc.dtype)  # not in fp64: its pipe is slow
        result = parts[part] * scale
        if HAS_BIAS:
            result += (tl.load(bias + out * stride_bias, mask=exists, other=0.0).to(acc.dtype) * scale)[None, :]
        places = y + m[:, None] * out_features + out[None, :]
        inside = (m < batch)[:, None] & exists[None, :]
        if ADD:
            result += tl.load(places, mask=inside, other=0.0).to(acc.dtype) * tl.full((), beta, acc.dtype)
        tl.store(places, result.to(y.dtype.element_ty), mask=inside)
