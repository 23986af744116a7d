"""Whether all processes hold the same patterns; averaging unlike blocks would go unnoticed."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from efcn_sparse.linear import SparseLinear


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
        name: module.pattern.fingerprint for name, module in model.named_modules() if isinstance(module, SparseLinear)
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
