"""What runs for a layer or a pattern, why, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efcn_sparse.ops.backends import BACKENDS
from efcn_sparse.ops.select import located, reasons, resolve
from efcn_sparse.pattern import BlockPattern
from efcn_sparse.sizes import size_text

TILES_AT = 256


@dataclass(frozen=True)
class Spread:
    """The smallest, the mean and the largest of some counts; zeros where there is nothing to count."""

    least: int
    mean: float
    most: int

    def __str__(self) -> str:
        return f"{self.least} to {self.most}, mean {self.mean:.3g}"


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``print`` it to read it.

    Attributes:
        name: the type of what was explained.
        shape, block_shape: of the matrix W, in entries.
        dtype, device: what the choice of backend was asked for.
        requested: ``"auto"``, or the backend that the layer names.
        backend: the backend that runs, or None if the requested one cannot run there.
        reasons: each backend, best first, with the reason why it cannot run there (None if it can).
        blocks, masked_blocks: stored blocks, and how many of them are only partly inside the support.
        density: stored blocks over all blocks.
        stored_entries, support_entries: entries of the stored blocks, and those of them that count.
        blocks_per_row, blocks_per_column: over block rows and block columns.
        mean_run_length: mean length of the runs of neighboring blocks in a row.
        values_bytes, index_bytes: memory of ``values`` in ``dtype``, and of the pattern's arrays.
        flops_per_sample: two for each stored entry: one forward product of one sample. dX and dW cost as much each.
        tiles: for each operation of the backend the tile that it takes at a batch of ``TILES_AT``, and why; empty for
            backends that have no choice of tiles.
    """

    name: str
    shape: tuple[int, int]
    block_shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    requested: str
    backend: str | None
    reasons: dict[str, str | None]
    blocks: int
    masked_blocks: int
    density: float
    stored_entries: int
    support_entries: int
    blocks_per_row: Spread
    blocks_per_column: Spread
    mean_run_length: float
    values_bytes: int
    index_bytes: int
    flops_per_sample: int
    tiles: dict[str, str]

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        (out_features, in_features), (rows, cols) = self.shape, self.block_shape
        lines = [f"{self.name} [{out_features}, {in_features}], blocks {rows}×{cols}, {dtype} on {self.device}"]
        lines.append(f"  backend: {self.backend or 'none'} (asked for: {self.requested})")
        for name, reason in self.reasons.items():
            lines.append(f"    {name}: {'can run' if reason is None else reason}")
        masked = f", {self.masked_blocks:,} of them masked" if self.masked_blocks else ""
        lines.append(f"  blocks: {self.blocks:,} stored, density {self.density:.3g}{masked}")
        lines.append(f"    per row: {self.blocks_per_row}; per column: {self.blocks_per_column}")
        lines.append(f"    mean run of neighbors in a row: {self.mean_run_length:.3g}")
        lines.append(f"  entries: {self.stored_entries:,} stored, {self.support_entries:,} in the support")
        lines.append(f"  memory: {size_text(self.values_bytes)} of values, {size_text(self.index_bytes)} of indices")
        lines.append(f"  work: {self.flops_per_sample:,} FLOP a sample, forward")
        lines.extend(f"  {name} at batch {TILES_AT}: {tile}" for name, tile in self.tiles.items())
        return "\n".join(lines)


def explain(
    layer_or_pattern: Any, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Explanation:
    """Which backend runs, why not the others, and what the pattern holds and costs.

    Args:
        layer_or_pattern: a ``BlockPattern``, a ``SparseLinear``, or a module that holds one as ``.linear``.
        dtype: of the operands; by default the layer's, or torch's default dtype for a pattern.
        device: of the operands; by default where the layer or the pattern lies.

    Raises:
        TypeError: there is no pattern in what was given.

    Example:
        >>> import torch, efcn_sparse as es
        >>> found = es.explain(es.BlockPattern.dense((64, 32), (16, 16)))
        >>> found.blocks, found.stored_entries, found.flops_per_sample
        (8, 2048, 4096)
        >>> print(found)  # doctest: +ELLIPSIS
        BlockPattern [64, 32], blocks 16×16, float32 on cpu
          backend: ... (asked for: auto)
        ...
          blocks: 8 stored, density 1
            per row: 2 to 2, mean 2; per column: 4 to 4, mean 4
            mean run of neighbors in a row: 2
          entries: 2,048 stored, 2,048 in the support
          memory: 8.0 KiB of values, 128 B of indices
          work: 4,096 FLOP a sample, forward
    """
    pattern, values, requested = _parts(layer_or_pattern)
    if dtype is None:
        dtype = torch.get_default_dtype() if values is None else values.dtype
    where = located(device) if device is not None else pattern.device
    why_not = reasons(where, dtype)
    can_run = requested == "auto" or why_not.get(requested, "") is None
    stored = pattern.nnz_blocks * pattern.block_shape[0] * pattern.block_shape[1]
    backend = resolve(requested, where, dtype) if can_run else None
    choices = getattr(BACKENDS.get(backend or ""), "choices", None)
    return Explanation(
        name=type(layer_or_pattern).__name__,
        shape=pattern.shape,
        block_shape=pattern.block_shape,
        dtype=dtype,
        device=where,
        requested=requested,
        backend=backend,
        reasons=why_not,
        blocks=pattern.nnz_blocks,
        masked_blocks=int((pattern.mask_index >= 0).sum()),
        density=pattern.density,
        stored_entries=stored,
        support_entries=pattern.nnz,
        blocks_per_row=_spread(pattern.crow_indices.diff()),
        blocks_per_column=_spread(pattern.ccol_indices.diff()),
        mean_run_length=_mean_run_length(pattern),
        values_bytes=stored * dtype.itemsize,
        index_bytes=sum(tensor.nbytes for tensor in pattern.structure),
        flops_per_sample=2 * stored,
        tiles=choices(pattern, TILES_AT, dtype, where) if choices and pattern.nnz_blocks else {},
    )


def _parts(subject: Any) -> tuple[BlockPattern, Tensor | None, str]:
    """The pattern in ``subject``, its values if it has any, and the backend that it asks for."""
    if isinstance(subject, BlockPattern):
        return subject, None, "auto"
    for holder in (subject, getattr(subject, "linear", None)):
        pattern = getattr(holder, "pattern", None)
        if isinstance(pattern, BlockPattern):
            return pattern, getattr(holder, "values", None), getattr(holder, "backend", "auto")
    raise TypeError(
        "layer_or_pattern must be a BlockPattern, a SparseLinear or a module that holds one as .linear, "
        f"got {type(subject).__name__}"
    )


def _spread(counts: Tensor) -> Spread:
    if counts.numel() == 0:
        return Spread(0, 0.0, 0)
    return Spread(int(counts.min()), float(counts.double().mean()), int(counts.max()))


def _mean_run_length(pattern: BlockPattern) -> float:
    rows, cols = pattern.rows_of_blocks(), pattern.col_indices
    joined = (rows[1:] == rows[:-1]) & (cols[1:] == cols[:-1] + 1)
    runs = pattern.nnz_blocks - int(joined.sum())
    return pattern.nnz_blocks / runs if runs else 0.0
