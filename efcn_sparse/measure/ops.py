"""spmm and sddmm against dense products, torch.sparse and SciPy; a wrong result is not timed."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from efcn_sparse.measure.timing import OURS, median_ratio
from efcn_sparse.ops import sddmm, spmm
from efcn_sparse.pattern import BlockPattern

OPS = ("forward", "dx", "dw")
# relative Frobenius distance from the dense product of the same dtype, whose own rounding counts too
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class OpsCase:
    """One operation on a random ``[size, size]`` pattern of square blocks."""

    op: str
    dtype: torch.dtype
    batch: int
    block: int
    size: int = 4096
    density: float = 0.1

    def __str__(self) -> str:
        return f"{self.op}-{str(self.dtype).removeprefix('torch.')}-N{self.batch}-b{self.block}"


def cases(shapes: str) -> Iterator[OpsCase]:
    """Those of ``full``, ``quick`` or ``tiny``, whose numbers say nothing."""
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, float]] = {
        "full": ((256, 1024), (16, 32, 64, 128), 4096, 0.1),
        "quick": ((256,), (16, 64), 2048, 0.1),
        "tiny": ((8,), (16, 64), 256, 0.25),
    }
    batches, blocks, size, density = sizes[shapes]
    for dtype, batch, op, block in itertools.product((torch.float32, torch.bfloat16), batches, OPS, blocks):
        yield OpsCase(op, dtype, batch, block, size, density)


def few_row_cases(shapes: str) -> Iterator[OpsCase]:
    """One row and eight in fp32, as in inference: what counts is reading the weights."""
    batches, blocks, size = {"full": ((1, 8), (16, 32, 64), 4096), "quick": ((1,), (16, 64), 2048)}.get(
        shapes, ((1,), (16,), 256)
    )
    for batch, op, block in itertools.product(batches, ("forward", "dx"), blocks):
        yield OpsCase(op, torch.float32, batch, block, size)


def density_cases(shapes: str) -> Iterator[OpsCase]:
    """Blocks of 64 in fp32: how the speed-up depends on density and batch."""
    batches, densities, size = {
        "full": ((16, 256, 2048), (0.02, 0.05, 0.1, 0.25, 0.5, 0.75), 2048),
        "quick": ((16, 256), (0.05, 0.1, 0.25, 0.5), 1024),
        "tiny": ((8,), (0.25, 0.5), 256),
    }[shapes]
    for batch, density, op in itertools.product(batches, densities, OPS):
        yield OpsCase(op, torch.float32, batch, 64, size, density)


def contestants(case: OpsCase, sparse: bool = True) -> tuple[dict[str, Callable[[], Any]], float]:
    """The calls by name (``dense``, ``onednn``, ``torch_sparse``, ``scipy`` where they can, ours last); the density.

    Each rival has the layout that suits it, prepared outside the call. Bf16 has our own product in fp32 (``float32``)
    beside it, and dense rivals in fp32 where torch has no fast bf16 product (AVX2). torch.sparse and SciPy take part in
    fp32 only, which is all that they multiply on a CPU; for ``dw`` torch has a sampled product for CSR alone, and SciPy
    none. Without ``sparse`` they stay away.

    Raises:
        AssertionError: a result is not that of the dense product.
    """
    generator = torch.Generator().manual_seed(1906)
    size, dtype = case.size, case.dtype
    pattern = BlockPattern.random((size, size), (case.block, case.block), case.density, generator)
    x, dy = (torch.randn(case.batch, size, generator=generator).to(dtype) for _ in range(2))
    values = torch.randn(pattern.values_shape, generator=generator).div_((case.density * size) ** 0.5).to(dtype)
    rivals = _dtype_of_dense(dtype)
    dense, x_dense, dy_dense = pattern.to_dense(values).to(rivals), x.to(rivals), dy.to(rivals)
    dense_calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: F.linear(x_dense, dense),
        "dx": lambda: dy_dense @ dense,
        "dw": lambda: dy_dense.T @ x_dense,
    }
    found = {"dense": dense_calls[case.op]}
    # torch sends fp32 to MKL, which is slow on AMD's processors with AVX-512: oneDNN shows what they can do
    left, right = {
        "forward": (x_dense, dense), "dx": (dy_dense, dense.T), "dw": (dy_dense.T, x_dense.T)
    }[case.op]  # fmt: skip
    found["onednn"] = lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], None)
    try:
        found["onednn"]()
    except (AttributeError, RuntimeError, NotImplementedError):
        del found["onednn"]
    if sparse and dtype == torch.float32:
        found |= _sparse_rivals(case.op, x, dy, values, pattern)
    if dtype == torch.bfloat16:  # what halving the memory costs or saves
        found["float32"] = _our_call(case.op, x.float(), dy.float(), values.float(), pattern)
    found[OURS] = _our_call(case.op, x, dy, values, pattern)
    expected = _comparable("dense", case.op, found["dense"](), pattern)
    for name, call in found.items():
        error = relative_error(_comparable(name, case.op, call(), pattern), expected)
        if not error <= _TOLERANCE[dtype]:
            raise AssertionError(f"{case}: {name} must be within {_TOLERANCE[dtype]} of the dense product, got {error}")
    return found, pattern.nnz / size**2


def _our_call(op: str, x: Tensor, dy: Tensor, values: Tensor, pattern: BlockPattern) -> Callable[[], Tensor]:
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": lambda: spmm(x, values, pattern),
        "dx": lambda: spmm(dy, values, pattern, transpose=True),
        "dw": lambda: sddmm(dy, x, pattern),
    }
    return calls[op]


def row(case: OpsCase, seconds: dict[str, list[float]], density: float) -> dict[str, Any]:
    """A line of the table: milliseconds and speed-up over the dense product first, then our rate over its rate.

    A rate counts the FLOPs of stored entries alone, so 1 says that the time falls with the entries.
    """
    speed_up = median_ratio(seconds["dense"], seconds[OURS])
    ratios = {name: median_ratio(times, seconds[OURS]) for name, times in seconds.items()}
    name, dense = str(case.dtype).removeprefix("torch."), _dtype_of_dense(case.dtype)
    return {
        "op": case.op, "dtype": name if dense == case.dtype else f"{name}, dense float32",
        "N": case.batch, "block": case.block,
        "ms": 1e3 * statistics.median(seconds[OURS]), "dense, ms": 1e3 * statistics.median(seconds["dense"]),
        "speed-up": speed_up, "rate to dense": speed_up * density,
        "rate to the faster dense": min(speed_up, ratios.get("onednn", speed_up)) * density,
        "oneDNN / ours": ratios.get("onednn"),
        "our float32 / ours": ratios.get("float32"),
        "torch.sparse / ours": ratios.get("torch_sparse"), "SciPy / ours": ratios.get("scipy"),
    }  # fmt: skip


def _dtype_of_dense(dtype: torch.dtype) -> torch.dtype:
    """fp32 for bf16 where oneDNN has none: torch's own loops take hundreds of times as long."""
    slow = dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if slow else dtype


def relative_error(result: Tensor, expected: Tensor) -> float:
    """‖result − expected‖ / ‖expected‖ in fp64."""
    wanted = expected.double()
    return float((result.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))


def _sparse_rivals(op: str, x: Tensor, dy: Tensor, values: Tensor, pattern: BlockPattern) -> dict[str, Callable]:
    """Both multiply sparse @ dense; torch has no product with a transposed BSR view, so Wᵀ gets a matrix of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's sparse layouts announce themselves as beta
        if op == "dw":
            mask, a = pattern.to_mask().float().to_sparse_csr(), dy.T.contiguous()
            return {"torch_sparse": lambda: torch.sparse.sampled_addmm(mask, a, x, beta=0.0)}
        if op == "dx":
            values, pattern = values[pattern.block_order.long()].mT.contiguous(), pattern.transposed()
        columns = (x if op == "forward" else dy).T.contiguous()
        matrix = torch.sparse_bsr_tensor(pattern.crow_indices, pattern.col_indices, values, size=pattern.shape)
        found: dict[str, Callable] = {"torch_sparse": lambda: matrix @ columns}
    try:
        from scipy.sparse import bsr_array
    except ImportError:
        return found
    parts = (values.numpy(), pattern.col_indices.numpy(), pattern.crow_indices.numpy())
    scipy_matrix, array = bsr_array(parts, shape=tuple(pattern.shape)), columns.numpy()
    return found | {"scipy": lambda: scipy_matrix @ array}


def _comparable(name: str, op: str, result: Any, pattern: BlockPattern) -> Tensor:
    """In the form of the dense product; for ``dw`` the stored entries alone."""
    tensor = result if isinstance(result, Tensor) else torch.from_numpy(result)
    if op == "dw":
        return tensor if name in (OURS, "float32") else pattern.gather(tensor.to_dense())
    return tensor.T if name in ("torch_sparse", "scipy") else tensor
