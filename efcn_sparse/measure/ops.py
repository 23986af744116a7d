"""spmm and sddmm against dense, torch.sparse and SciPy: rates that count stored entries only."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efcn_sparse.measure.contest import OURS, Contest
from efcn_sparse.measure.roofline import Roofline, has_onednn
from efcn_sparse.measure.shapes import DTYPES, OpsCase, ops_goal
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.ops.select import resolve
from efcn_sparse.pattern import BlockPattern

# relative Frobenius distance from the dense product of the same dtype, whose own rounding counts too
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
_Rival = tuple[Callable[[], Any], Callable[[Any], Tensor]]  # the timed call, and its result in the form of ours


@dataclass(frozen=True)
class Operands:
    """``x`` ``[N, in]``, ``dy`` ``[N, out]``, W as stored ``values`` and as ``dense`` ``[out, in]``."""

    pattern: BlockPattern
    values: Tensor
    dense: Tensor
    x: Tensor
    dy: Tensor


@dataclass
class OpsContest:
    """A checked contest of one case, and what is needed to make its record."""

    case: OpsCase
    contest: Contest
    nnz: int
    moved: int
    error: float

    def record(self, roofline: Roofline, has_amx: bool) -> dict[str, Any]:
        """The case's line in the results."""
        case, contest = self.case, self.contest
        flops = 2.0 * case.batch * self.nnz
        seconds = {name: contest.spread(name) for name in contest.contestants}
        share = self.nnz / case.size**2
        against_dense = contest.ratio("dense", OURS)
        rate = 1e-9 * flops / seconds[OURS].median
        bound = roofline.bound(case.dtype, flops, self.moved)
        goal = ops_goal(case, has_amx)
        return {
            "op": case.op,
            "dtype": case.dtype,
            "block": case.block,
            "batch": case.batch,
            "size": case.size,
            "density": share,
            "backend": resolve("auto", "cpu", DTYPES[case.dtype]),
            "gflops": rate,
            "dense_gflops": 1e-9 * flops / share / seconds["dense"].median,
            "gb_s": 1e-9 * self.moved / seconds[OURS].median,
            "roofline_gflops": bound.gflops,
            "limited_by": bound.limited_by,
            "roofline_fraction": rate / bound.gflops,
            "rate_to_dense": against_dense.median * share,
            "rate_to_dense_quartiles": [against_dense.low * share, against_dense.high * share],
            "goal": goal,
            "goal_met": None if goal is None else against_dense.median * share >= goal,
            "times_faster_than": {
                name: contest.ratio(name, OURS).median for name in contest.contestants if name != OURS
            },
            "seconds": {name: asdict(spread) for name, spread in seconds.items()},
            "relative_error": self.error,
        }


def prepare(case: OpsCase) -> OpsContest:
    """The contest of ``case``, after every contestant's result has been compared with the dense one.

    Raises:
        AssertionError: a result is not that of the dense product.
    """
    operands = make_operands(case.size, case.density, case.block, case.batch, case.dtype)
    rivals = _rivals(case, operands)
    ours = _ours(case.op, operands)
    expected = rivals["dense"][0]()
    tolerance = _TOLERANCE[case.dtype]
    error = relative_error(ours(), expected if case.op != "dw" else operands.pattern.gather(expected))
    if not error <= tolerance:
        raise AssertionError(f"{case}: {OURS} must be within {tolerance} of the dense product, got {error:.3g}")
    for name, (call, in_our_form) in rivals.items():
        distance = relative_error(in_our_form(call()), expected)
        if not distance <= tolerance:
            raise AssertionError(f"{case}: {name} must be within {tolerance} of the dense product, got {distance:.3g}")
    x, dy, values = operands.x, operands.dy, operands.values
    return OpsContest(
        case,
        Contest({**{name: call for name, (call, _) in rivals.items()}, OURS: ours}),
        operands.pattern.nnz,
        (x.numel() + dy.numel() + values.numel()) * values.element_size(),
        error,
    )


def relative_error(result: Tensor, expected: Tensor) -> float:
    """‖result − expected‖ / ‖expected‖ in fp64."""
    wanted = expected.double()
    return float((result.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))


@functools.lru_cache(maxsize=1)
def make_operands(size: int, density: float, block: int, batch: int, dtype: str) -> Operands:
    """Random operands, the same for the same arguments."""
    generator = torch.Generator().manual_seed(1906)
    pattern = BlockPattern.random((size, size), (block, block), density, generator)
    x, dy = (torch.randn(batch, size, generator=generator).to(DTYPES[dtype]) for _ in range(2))
    values = torch.randn(pattern.values_shape, generator=generator).div_((density * size) ** 0.5).to(DTYPES[dtype])
    return Operands(pattern, values, pattern.to_dense(values), x, dy)


def _ours(op: str, operands: Operands) -> Callable[[], Tensor]:
    pattern, values, x, dy = operands.pattern, operands.values, operands.x, operands.dy
    return {
        "forward": lambda: spmm(x, values, pattern),
        "dx": lambda: spmm(dy, values, pattern, transpose=True),
        "dw": lambda: sddmm(dy, x, pattern),
    }[op]


def _rivals(case: OpsCase, operands: Operands) -> dict[str, _Rival]:
    x, dy, dense = operands.x, operands.dy, operands.dense
    product: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: F.linear(x, dense),
        "dx": lambda: dy @ dense,
        "dw": lambda: dy.T @ x,
    }
    rivals: dict[str, _Rival] = {"dense": (product[case.op], _as_it_is)}
    if has_onednn(x.dtype):
        left, right = {"forward": (x, dense), "dx": (dy, dense.T), "dw": (dy.T, x.T)}[case.op]
        onednn = torch.ops.mkldnn._linear_pointwise
        rivals["dense_onednn"] = (lambda: onednn(left, right, None, "none", [], None), _as_it_is)
    if case.sparse_rivals and case.dtype == "float32":  # neither torch.sparse on CPU nor SciPy multiplies bf16
        rivals |= _sparse_rivals(case.op, operands)
    return rivals


def _sparse_rivals(op: str, operands: Operands) -> dict[str, _Rival]:
    """torch.sparse and SciPy, each in the layout that suits it best, prepared outside the timed call.

    Both multiply sparse @ dense, so their activations are given as ``[features, N]``. Wᵀ gets a BSR matrix of its own:
    torch 2.13 has no product with the transposed view on CPU. SciPy has no sampled product at all; torch has
    one for CSR, without blocks.
    """
    pattern, values, dense = operands.pattern, operands.values, operands.dense
    found: dict[str, _Rival] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's sparse layouts announce themselves as beta
        if op == "dw":
            a, b = operands.dy.T.contiguous(), operands.x
            mask = _csr_mask(dense.shape, pattern)
            call = functools.partial(torch.sparse.sampled_addmm, mask, a, b, beta=0.0)
            sampled = pattern.to_mask()
            # entries that are not sampled are unknown to it: the dense product lends them, so only sampled ones count
            fill = (operands.dy.T @ operands.x).masked_fill(sampled, 0)
            return {"torch_sparse_csr": (call, lambda result: result.to_dense() + fill)}
        activations = (operands.x if op == "forward" else operands.dy).T.contiguous()
        if op == "dx":
            values = values[pattern.block_order.long()].transpose(1, 2).contiguous()
            pattern = pattern.transposed()
        matrix = torch.sparse_bsr_tensor(pattern.crow_indices, pattern.col_indices, values, size=pattern.shape)
        found["torch_sparse_bsr"] = (lambda: matrix @ activations, _transposed)
    try:
        from efcn_sparse.convert import to_scipy

        scipy_matrix = to_scipy(values, pattern)
    except ModuleNotFoundError:
        return found
    array = activations.numpy()
    found["scipy_bsr"] = (lambda: scipy_matrix @ array, lambda result: torch.from_numpy(result).T)
    return found


def _csr_mask(shape: torch.Size, pattern: BlockPattern) -> Tensor:
    return pattern.to_mask().float().reshape(shape).to_sparse_csr()


def _as_it_is(result: Tensor) -> Tensor:
    return result


def _transposed(result: Tensor) -> Tensor:
    return result.T
