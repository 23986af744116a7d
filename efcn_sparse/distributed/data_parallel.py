"""What processes that average gradients must agree on: their patterns, and the blocks that they move."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from efcn_sparse.gradients import Factors
from efcn_sparse.linear import SparseLinear
from efcn_sparse.linear.state import stored_pattern


def check_same_patterns(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Raise on every process unless all of them have the same sparse layers with the same patterns.

    A collective call: every process of the group must make it. It exchanges one fingerprint for each layer.

    Args:
        model: any module; also one inside ``DistributedDataParallel``.
        process_group: all processes when None.

    Raises:
        ValueError: names each layer whose pattern differs, and the ranks on each side.
        RuntimeError: ``torch.distributed`` has not been initialized.

    Example:
        >>> import torch, efcn_sparse as es
        >>> store = dist.HashStore()
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> layer = es.SparseLinear(4, 4, es.BlockPattern.dense((4, 4), (2, 2)))
        >>> es.distributed.check_same_patterns(layer)
        >>> dist.destroy_process_group()
    """
    if not dist.is_initialized():
        raise RuntimeError("check_same_patterns needs torch.distributed.init_process_group first")
    mine = {
        name: stored_pattern(module).fingerprint
        for name, module in model.named_modules()
        if isinstance(module, SparseLinear)
    }
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, mine, group=process_group)
    names = dict.fromkeys(name for patterns in everyone for name in patterns)
    unlike = []
    for name in names:
        ranks: dict[str, list[int]] = {}
        for rank, patterns in enumerate(everyone):
            ranks.setdefault(patterns.get(name, "no such layer"), []).append(rank)
        if len(ranks) > 1:
            sides = ", ".join(f"{pattern} on {_ranks(where)}" for pattern, where in ranks.items())
            unlike.append(f"{name or type(model).__name__}: {sides}")
    if unlike:
        raise ValueError("patterns must be the same on every rank, got " + "; ".join(unlike))


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


@torch.no_grad()
def join_factors(factors: Factors, process_group: dist.ProcessGroup | None = None) -> Factors:
    """The factors of the mean of all processes' gradients: their rows one below the other, ``dy`` over their number.

    What :class:`torch.nn.parallel.DistributedDataParallel` gives as gradient is ``dyᵀ x`` of the result. Every process
    gets the same factors, and so makes the same choice with them, as in :func:`efcn_sparse.regrow`. Batches may differ
    in size. A collective call: every process of the group must make it, in the same order for several layers.

    Args:
        factors: what :func:`efcn_sparse.record_factors` caught for one layer: ``dy`` ``[N, out_features]`` and ``x``
            ``[N, in_features]``.
        process_group: all processes when None.

    Returns:
        ``dy`` and ``x`` with as many rows as all processes have together, in the order of ranks.

    Raises:
        ValueError: ``dy`` and ``x`` are not matrices with equally many rows.

    Example:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> join_factors(Factors(torch.ones(2, 3), torch.ones(2, 5))).x.shape
        torch.Size([2, 5])
        >>> dist.destroy_process_group()
    """
    dy, x = factors
    if dy.dim() != 2 or x.dim() != 2 or len(dy) != len(x):
        raise ValueError(f"dy and x must be [N, out_features] and [N, in_features], got {[*dy.shape]} and {[*x.shape]}")
    mine = torch.tensor([len(dy)], device=dy.device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size(process_group))]
    dist.all_gather(counts, mine, group=process_group)
    rows = [int(count) for count in counts]
    return Factors(_stacked(dy, rows, process_group).div_(len(rows)), _stacked(x, rows, process_group))


def _stacked(mine: Tensor, rows: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """Pieces travel padded to the longest, since not every backend sends unlike sizes."""
    most = max(rows)
    padded = torch.nn.functional.pad(mine.detach(), (0, 0, 0, most - len(mine))).contiguous()
    pieces = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(pieces, padded, group=group)
    return torch.cat([piece[:count] for piece, count in zip(pieces, rows, strict=True)])
