"""Random inputs, in every memory layout that a user may bring."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from efcn_sparse import BlockPattern
from tests.oracle import support_of
from tests.table import Row


def randn(*shape: int, row: Row, seed: int) -> Tensor:
    """Standard normal numbers, the same on every device."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(row.dtype).to(row.device)


def random_values(pattern: BlockPattern, row: Row, seed: int = 11, *, outside: float = float("nan")) -> Tensor:
    """Values with ``outside`` wherever an entry does not count, so that reading one shows."""
    values = randn(*pattern.values_shape, row=row, seed=seed)
    return values.masked_fill(~support_of(pattern).to(row.device), outside)


def within(tensor: Tensor, sentinel: float = float("nan"), margin: int = 67) -> tuple[Tensor, Tensor]:
    """A copy of ``tensor`` inside a larger buffer of sentinels, and that buffer. The start is aligned to nothing."""
    buffer = torch.full((tensor.numel() + 2 * margin,), sentinel, dtype=tensor.dtype, device=tensor.device)
    inner = buffer[margin : margin + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner, buffer


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 9), float("nan"))
    wide[..., 4 : 4 + x.shape[-1]] = x
    return wide[..., 4 : 4 + x.shape[-1]]


def _every_other(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    wide[..., ::2] = x
    return wide[..., ::2]


def _every_other_row(x: Tensor) -> Tensor:
    tall = x.new_full((2 * x.shape[0], *x.shape[1:]), float("nan"))
    tall[::2] = x
    return tall[::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "sliced": _sliced,
    "transposed": lambda x: x.mT.contiguous().mT,
    "every-other-column": _every_other,
    "every-other-row": _every_other_row,
    "unaligned": lambda x: within(x, margin=1)[0],
    "expanded-rows": lambda x: x[:1].expand(x.shape),
    "expanded-columns": lambda x: x[..., :1].expand(x.shape),
    "expanded-both": lambda x: x[:1, ..., :1].expand(x.shape),
}
