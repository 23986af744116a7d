"""SDDMM: out = alpha · (aᵀ b at the stored blocks) + beta · out. The launcher, then the kernels.

One launch computes the blocks over stretches of the batch; a second one adds the stretches, where there are several.
No ``from __future__ import annotations`` here: Triton reads the annotations themselves.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from efcn_sparse.ops.backends.triton import plan
from efcn_sparse.ops.backends.triton.device import device_of, must_widen
from efcn_sparse.ops.backends.triton.launch import cut, dtype_of_sums, input_precision, launch_named, parts_of_blocks
from efcn_sparse.ops.backends.triton.schedule import remembered
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
    problem = plan.Problem("sddmm", structure, height, width, batch, a.dtype, device_of(a.device))
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
            SPLIT=count > 1, PRECISION=input_precision(a.dtype),
            num_warps=config.warps, num_stages=config.stages, **common,
        )  # fmt: skip
    if count > 1:
        rows_of_blocks = remembered(structure, "rows of blocks", structure.rows_of_blocks)
        with launch_named("sum_stretches_kernel", config, out=out, pieces=pieces):
            sum_stretches_kernel[(-(-out.numel() // _SUM_BLOCK),)](
                out, pieces, rows_of_blocks, structure.col_indices, structure.mask_index, structure.masks,
                count, out.numel(), out_features, in_features, alpha, beta, BLOCK=_SUM_BLOCK, **common,
            )  # fmt: skip


# batches of every size run one binary
@triton.jit(do_not_specialize=["batch", "n_tasks"])
def sddmm_kernel(
    out, a, b, pieces, tasks, members, entry_cols, entry_blocks, mask_index, masks,
    batch, stretch, n_tasks, out_features, in_features, stride_a, stride_b, size_of_values,
    alpha: tl.float64, beta: tl.float64,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, MEMBERS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, MASKED: tl.constexpr, RAGGED: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """The blocks of one tile: columns of b on the M axis, block after block, the super-row's columns of a on N.

    A tile of a serves all blocks of the tile; the blocks' rows, which may be few, lie on the N side of the product.
    """
    TILES_N: tl.constexpr = (MEMBERS * HEIGHT + BLOCK_N - 1) // BLOCK_N
    column, piece = tl.program_id(0) % (n_tasks * TILES_N), tl.program_id(0) // (n_tasks * TILES_N)
    task, tile_n = column // TILES_N, column % TILES_N
    group = tl.load(tasks + task * 4)
    first = tl.load(tasks + task * 4 + 1).to(tl.int64)
    entries = tl.load(tasks + task * 4 + 2)
    tile_m = tl.load(tasks + task * 4 + 3)

    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    here = m < entries * WIDTH
    entry, j = first + m // WIDTH, m % WIDTH
    c = tl.load(entry_cols + entry, mask=here, other=0) * WIDTH + j
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    member, o = n // HEIGHT, n % HEIGHT
    inside_n = n < MEMBERS * HEIGHT
    row = tl.load(members + group * MEMBERS + member, mask=inside_n, other=-1)
    r = tl.where(row >= 0, row, 0) * HEIGHT + o
    here_c = here & (c < in_features) if RAGGED else here

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUMULATE)
    begin = piece.to(tl.int64) * stretch
    left = tl.minimum(batch - begin, stretch).to(tl.int32)  # 64 bits would cost as much as the loads
    k = tl.arange(0, BLOCK_K)
    places_b = b + ((begin + k)[None, :] * stride_b + c[:, None])
    places_a = a + ((begin + k)[:, None] * stride_a + r[None, :])
    for k0 in range(0, left, BLOCK_K):
        inside_k = k < left - k0
        # past the last block nothing is fetched; for a missing row that of another is, and its products are not stored
        tile_b = tl.load(places_b, mask=inside_k[None, :] & here_c[:, None], other=0.0)
        if RAGGED:
            tile_a = tl.load(places_a, mask=inside_k[:, None] & (r < out_features)[None, :], other=0.0)
        else:
            tile_a = tl.load(places_a, mask=inside_k[:, None], other=0.0)
        acc = tl.dot(tile_b, tile_a, acc, input_precision=PRECISION, out_dtype=ACCUMULATE)
        places_b += tl.full((), BLOCK_K, tl.int64) * stride_b
        places_a += tl.full((), BLOCK_K, tl.int64) * stride_a

    PARTS: tl.constexpr = parts_of_blocks(BLOCK_M, BLOCK_N, HEIGHT, MASKED or ADD)
    parts = cut(acc, BLOCK_M, BLOCK_N, PARTS)
    pieces += piece.to(tl.int64) * size_of_values
    for part in tl.static_range(PARTS):
        _store(
            parts[part], tile_n * BLOCK_N + part * (BLOCK_N // PARTS), out, pieces,
            members + group * MEMBERS, entry_blocks + first * MEMBERS, mask_index, masks, m, here, here_c,
            out_features, alpha, beta, HEIGHT, WIDTH, MEMBERS, BLOCK_N // PARTS, SPLIT, MASKED, RAGGED, ADD,
        )  # fmt: skip


@triton.jit
def _store(
    acc, n0, out, pieces, members, entry_blocks, mask_index, masks, m, here, here_c, out_features, alpha, beta,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, MEMBERS: tl.constexpr, COLS: tl.constexpr,
    SPLIT: tl.constexpr, MASKED: tl.constexpr, RAGGED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """COLS columns of a tile from ``n0`` on, to ``out`` or, where the batch is cut, to ``pieces``."""
    n = n0 + tl.arange(0, COLS)
    member, o = n // HEIGHT, n % HEIGHT
    inside_n = (n < MEMBERS * HEIGHT)[None, :]
    if HEIGHT % COLS == 0 or MEMBERS == 1:  # one member; a table of blocks in memory order would have to be transposed
        which = m // WIDTH * MEMBERS + tl.minimum(n0 // HEIGHT, MEMBERS - 1)
        block = tl.where(inside_n, tl.load(entry_blocks + which, mask=here, other=-1)[:, None], -1)
    else:
        which = (m // WIDTH)[:, None] * MEMBERS + member[None, :]
        block = tl.load(entry_blocks + which, mask=here[:, None] & inside_n, other=-1)
    inside_block = o[None, :] * WIDTH + (m % WIDTH)[:, None]
    place = block.to(tl.int64) * (HEIGHT * WIDTH) + inside_block
    if SPLIT:
        tl.store(pieces + place, acc, mask=block >= 0)
    else:
        counts = block >= 0
        if RAGGED:
            row = tl.load(members + member, mask=n < MEMBERS * HEIGHT, other=-1)
            counts = counts & here_c[:, None] & (row * HEIGHT + o < out_features)[None, :]
        if MASKED:
            mask = tl.load(mask_index + block, mask=counts, other=-1)
            of_mask = masks + mask.to(tl.int64) * (HEIGHT * WIDTH) + inside_block
            counts = counts & (tl.load(of_mask, mask=counts & (mask >= 0), other=1) != 0)
        acc = acc * tl.full((), alpha, acc.dtype)  # not in fp64: its pipe is slow
        if ADD:
            acc += tl.load(out + place, mask=counts, other=0.0).to(acc.dtype) * tl.full((), beta, acc.dtype)
        if RAGGED or MASKED:
            acc = tl.where(counts, acc, 0.0)
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=block >= 0)


@triton.jit
def sum_stretches_kernel(
    out, pieces, rows_of_blocks, cols_of_blocks, mask_index, masks,
    n_pieces, size_of_values, out_features, in_features,
    alpha: tl.float64, beta: tl.float64,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, RAGGED: tl.constexpr, ADD: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """``out ← alpha · sum of pieces + beta · out``, the pieces added in ascending order; zero outside the support."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size_of_values
    acc = tl.zeros((BLOCK,), dtype=ACCUMULATE)
    for piece in range(0, n_pieces):
        acc += tl.load(pieces + piece * size_of_values + at, mask=inside, other=0.0)
    block, element = at // (HEIGHT * WIDTH), at % (HEIGHT * WIDTH)
    counts = inside
    if RAGGED:
        row = tl.load(rows_of_blocks + block, mask=inside, other=0) * HEIGHT + element // WIDTH
        col = tl.load(cols_of_blocks + block, mask=inside, other=0) * WIDTH + element % WIDTH
        counts = counts & (row < out_features) & (col < in_features)
    if MASKED:
        mask = tl.load(mask_index + block, mask=counts, other=-1).to(tl.int64)
        kept = tl.load(masks + mask * (HEIGHT * WIDTH) + element, mask=counts & (mask >= 0), other=1)
        counts = counts & (kept != 0)
    acc = acc * tl.full((), alpha, acc.dtype)
    if ADD:
        acc += tl.load(out + at, mask=counts, other=0.0).to(acc.dtype) * tl.full((), beta, acc.dtype)
    tl.store(out + at, tl.where(counts, acc, 0.0).to(out.dtype.element_ty), mask=inside)
