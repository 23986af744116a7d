"""What else multiplies block-sparse matrices on a GPU, timed beside ours; their layouts are made ahead."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, relative_error
from benchmarks.gpu.cases import Product
from benchmarks.gpu.products import TOLERANCE, operands
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.pattern import BlockPattern

Calls = dict[str, Callable[[], Tensor]]


def measure(bench: Bench, case: Product) -> dict[str, Any]:
    """For each operation seconds of everyone, and how many times longer than ours they take; or why one could not."""
    pattern, values, dense = operands(bench, case.block, case.out_features, case.in_features, case.density)
    x, dy = bench.randn(case.batch, case.in_features), bench.randn(case.batch, case.out_features)
    ours: Calls = {
        "forward": lambda: spmm(x, values, pattern, backend=bench.backend),
        "dx": lambda: spmm(dy, values, pattern, transpose=True, backend=bench.backend),
        "dw": lambda: sddmm(dy, x, pattern, backend=bench.backend),
    }
    expected = {
        "forward": x.float() @ dense.float().T,
        "dx": dy.float() @ dense.float(),
        "dw": pattern.gather(dy.float().T @ x.float()),
    }
    record: dict[str, Any] = vars(case) | {
        "ours": {operation: bench.clock.time(call).record() for operation, call in ours.items()}
    }
    for name, make in RIVALS.items():
        try:
            calls = make(pattern, values, dense, x, dy)
        except Exception as error:
            _settle(bench)
            record[name] = {"absent": f"{type(error).__name__}: {error}"[:300]}
            continue
        record[name] = {
            operation: _timed(bench, call, pattern, expected[operation], record["ours"][operation]["seconds"])
            for operation, call in calls.items()
        }
    return record


def _timed(
    bench: Bench, call: Callable[[], Tensor], pattern: BlockPattern, expected: Tensor, ours: float
) -> dict[str, Any]:
    try:
        found = call()
        if found.shape == pattern.shape:  # a gradient that is dense
            found = pattern.gather(found)
        error = relative_error(found, expected) if found.shape == expected.shape else None
        timing = bench.clock.time_either_way(call)
    except Exception as failure:
        _settle(bench)
        return {"failed": f"{type(failure).__name__}: {failure}"[:300]}
    right = None if error is None else error <= TOLERANCE
    return timing.record() | {"times_ours": timing.seconds / ours, "relative_error": error, "right": right}


def _settle(bench: Bench) -> None:
    if not bench.dry:
        torch.cuda.synchronize()


# -- each of them: (pattern, values, dense, x, dy) → its calls -------------------------------------------------------


def _masked(pattern: BlockPattern, values: Tensor, dense: Tensor, x: Tensor, dy: Tensor) -> Calls:
    mask = pattern.to_mask().to(dense.dtype)
    return {
        "forward": lambda: x @ (dense * mask).T,
        "dx": lambda: dy @ (dense * mask),
        "dw": lambda: (dy.T @ x).mul_(mask),
    }


def _torch_bsr(pattern: BlockPattern, values: Tensor, dense: Tensor, x: Tensor, dy: Tensor) -> Calls:
    product = importlib.import_module("torch.sparse._triton_ops").bsr_dense_addmm

    def call(p: BlockPattern, stored: Tensor, operand: Tensor) -> Callable[[], Tensor]:
        bsr = torch.sparse_bsr_tensor(
            p.crow_indices, p.col_indices, stored.contiguous(), size=p.shape, check_invariants=False
        )
        columns, zeros = operand.T.contiguous(), operand.new_zeros((p.shape[0], operand.shape[0]))
        return lambda: product(zeros, bsr, columns, beta=0).T

    turned = values[pattern.block_order.long()].transpose(1, 2)
    return {"forward": call(pattern, values, x), "dx": call(pattern.transposed(), turned, dy)}


def _stk(pattern: BlockPattern, values: Tensor, dense: Tensor, x: Tensor, dy: Tensor) -> Calls:
    stk = importlib.import_module("stk")
    height, width = pattern.block_shape
    weight = stk.ops.to_sparse(dense, blocking=height)
    turned = weight.t()
    return {
        "forward": lambda: stk.ops.dds(x, turned),
        "dx": lambda: stk.ops.dds(dy, weight),
        "dw": lambda: stk.ops.sdd(dy.t(), x, weight).data.view(-1, height, width),
    }


def _blksprs(pattern: BlockPattern, values: Tensor, dense: Tensor, x: Tensor, dy: Tensor) -> Calls:
    bs = importlib.import_module("blksprs")
    side = pattern.block_shape[0]

    def layout(matrix: Tensor) -> Tensor:
        return matrix.new_ones((1, matrix.shape[0] // side, matrix.shape[1] // side), dtype=torch.bool)

    def call(left: Tensor, right: Tensor, of_right: Tensor) -> Callable[[], Tensor]:
        of_left = layout(left)
        of_result = of_left.new_ones((1, of_left.shape[1], of_right.shape[2]))
        a = bs.ops.to_sparse(left[None].contiguous(), of_left, side)
        b = bs.ops.to_sparse(right[None].contiguous(), of_right, side)
        return lambda: bs.ops.matmul(a, of_left, b, of_right, of_result, side)

    blocks = pattern.to_mask()[None, ::side, ::side].contiguous()
    return {"forward": call(x, dense.T, blocks.transpose(1, 2).contiguous()), "dx": call(dy, dense, blocks)}


RIVALS: dict[str, Callable[[BlockPattern, Tensor, Tensor, Tensor, Tensor], Calls]] = {
    "dense with a mask": _masked,
    "torch.sparse_bsr": _torch_bsr,
    "stk": _stk,
    "blksprs": _blksprs,
}
