"""The table that every property of the operations runs over, as data: backends × dtypes × patterns.

A new backend is one more row of ``BACKENDS``; a new kind of pattern one more entry of ``PATTERNS``.

Two settings choose what is run. ``EFCN_TEST_DEVICE=cuda`` puts the rows on the GPU, with Triton's kernels compiled;
without it all is on the CPU, and they are interpreted. ``EFCN_TEST_SLOW=1`` interprets the whole table, not a choice.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from efcn_sparse import BlockPattern, extension_status
from efcn_sparse.ops.backends import triton

DEVICE = os.environ.get("EFCN_TEST_DEVICE", "cpu")
GPU = DEVICE == "cuda"
if DEVICE not in ("cpu", "cuda") or (GPU and not torch.cuda.is_available()):
    raise RuntimeError(f"EFCN_TEST_DEVICE must be 'cpu', or 'cuda' where torch sees a GPU, got {DEVICE!r}")
if GPU:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch's deterministic mode refuses cuBLAS
    torch.backends.cudnn.allow_tf32 = False  # dense convolutions are held against ours in fp32
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any is imported

FLOAT64, FLOAT32, BFLOAT16, FLOAT16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = (FLOAT64, FLOAT32, BFLOAT16, FLOAT16)


class Backend(NamedTuple):
    """One row: the backend's name, where it runs, what it multiplies, why it is not on this machine (or None),
    whether its results have the same bits on any number of threads, whether it is so slow here that most cases are
    left out, and whether it multiplies zeros of W with what x has there, as a dense product does."""

    name: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    missing: Callable[[], str | None]
    threads_keep_bits: bool
    slow: bool = False
    multiplies_zeros: bool = False


def _no_triton() -> str | None:
    return triton.why_not(DEVICE, torch.float32)


needs_triton = pytest.mark.skipif(_no_triton() is not None, reason=str(_no_triton()))  # for tests without a row


def _no_extension() -> str | None:
    if GPU:
        return f"its kernels run on CPU tensors, and EFCN_TEST_DEVICE is {DEVICE!r}"
    status = extension_status()
    return None if status.available else status.reason


BACKENDS = (
    Backend("reference", DEVICE, DTYPES, lambda: None, threads_keep_bits=False),  # the BLAS splits as it likes
    Backend("cpu", "cpu", DTYPES, _no_extension, threads_keep_bits=True),
    Backend("triton", DEVICE, DTYPES, _no_triton, threads_keep_bits=True, slow=not GPU, multiplies_zeros=True),
)


class Row(NamedTuple):
    """What one test runs on."""

    backend: str
    device: str
    dtype: torch.dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows(*dtypes: torch.dtype, where: Callable[[Backend], bool] = lambda _: True) -> list[Any]:
    """``pytest.param`` of each backend with each dtype (all by default); absent backends skip with the reason."""
    table = []
    for backend in filter(where, BACKENDS):
        reason = backend.missing()
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        for dtype in backend.dtypes:
            if not dtypes or dtype in dtypes:
                row = Row(backend.name, backend.device, dtype)
                table.append(pytest.param(row, id=f"{backend.name}-{dtype_name(dtype)}", marks=marks))
    return table


# -- patterns ----------------------------------------------------------------------------------------------------


def _random(shape: tuple[int, int], block_shape: tuple[int, int], density: float) -> BlockPattern:
    return BlockPattern.random(shape, block_shape, density, torch.Generator().manual_seed(1))


def _blocks(rows: Iterable[str], block_shape: tuple[int, int], shape: tuple[int, int] | None = None) -> BlockPattern:
    mask = torch.tensor([[character == "x" for character in row] for row in rows])
    shape = shape or (mask.shape[0] * block_shape[0], mask.shape[1] * block_shape[1])
    return BlockPattern.from_mask(mask, block_shape, shape=shape)


def _entries(shape: tuple[int, int], block_shape: tuple[int, int], density: float) -> BlockPattern:
    mask: Tensor = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < density
    return BlockPattern.from_mask(mask, block_shape)


def _mixed_masks() -> BlockPattern:
    mask = torch.ones((24, 32), dtype=torch.bool)
    mask[:8, :8].tril_()
    mask[8:16, 8:16] = False
    mask[10, 12] = True
    return BlockPattern.from_mask(mask, (8, 8))


PATTERNS: dict[str, Callable[[], BlockPattern]] = {
    "square": lambda: _random((64, 48), (16, 16), 0.5),
    "full": lambda: BlockPattern.dense((48, 32), (16, 16)),
    "empty": lambda: _random((24, 16), (8, 8), 0.0),
    "empty-rows-and-columns": lambda: _blocks((".x.x", "....", "xx..", "....", "...x"), (8, 4)),
    "one-block": lambda: _blocks(("...", ".x.", "..."), (16, 8)),
    "one-entry": lambda: BlockPattern.dense((1, 1), (1, 1)),
    "entries": lambda: _random((13, 17), (1, 1), 0.3),
    "tall-blocks": lambda: _random((192, 30), (64, 6), 0.5),
    "wide-blocks": lambda: _random((48, 256), (16, 64), 0.5),
    "odd-blocks": lambda: _random((32, 41), (3, 5), 0.4),
    "row-blocks": lambda: _random((12, 64), (1, 16), 0.4),
    "column-blocks": lambda: _random((64, 12), (16, 1), 0.4),
    "big-blocks": lambda: _random((256, 384), (128, 128), 0.5),
    "long-rows": lambda: _random((128, 768), (64, 64), 0.9),
    "long-columns": lambda: _random((768, 128), (64, 64), 0.9),
    "ragged-long-rows": lambda: BlockPattern.dense((37, 157), (8, 8)),
    "mid-blocks": lambda: _random((128, 192), (32, 32), 0.4),
    "ragged": lambda: _blocks(("x.x.x", ".xx.x", "x...x", ".x..x", "xxxxx"), (8, 8), (35, 37)),
    "ragged-rows": lambda: _blocks(("xx.", ".xx", "x.x"), (16, 16), (33, 48)),
    "ragged-columns": lambda: _blocks(("xx.", ".xx", "x.x"), (16, 16), (48, 47)),
    "larger-than-the-matrix": lambda: BlockPattern.dense((5, 3), (16, 16)),
    "masked": lambda: _entries((32, 48), (8, 8), 0.1),
    "masked-ragged": lambda: _entries((29, 43), (8, 6), 0.15),
    "masked-partly": _mixed_masks,
    "banded": lambda: _blocks(["." * (2 * r) + "x" * 20 + "." * (20 - 2 * r) for r in range(10)], (8, 8)),
    "unbalanced": lambda: _blocks(("x" * 25, "x" + "." * 24, "." * 25, "." * 24 + "x"), (16, 8)),
}


@functools.cache
def pattern(name: str, device: str = "cpu") -> BlockPattern:
    """The pattern of that name in ``PATTERNS``, on a row's device."""
    return PATTERNS[name]() if device == "cpu" else pattern(name).to(device)


def cases(names: Iterable[str], *dtypes: torch.dtype, where: Callable[[Backend], bool] = lambda _: True) -> list[Any]:
    """``pytest.param`` of (row, name), a choice: each backend meets every name in one dtype and, name after name,
    every dtype; no two backends that are quick meet a name in the same. Slow backends are thinned out elsewhere."""
    quick = [backend.name for backend in filter(where, BACKENDS) if not backend.slow]
    table = []
    for param in rows(*dtypes, where=where):
        row = param.values[0]
        known = [dtype for dtype in DTYPES if not dtypes or dtype in dtypes]
        for k, name in enumerate(names):
            if row.backend in quick and row.dtype != known[(k + 2 * quick.index(row.backend)) % len(known)]:
                continue
            table.append(pytest.param(row, name, id=f"{param.id}-{name}", marks=param.marks))
    return table


# What a slow backend runs of every test: some values of each parameter, where there is a choice.
_ON_SLOW: dict[str, tuple[Any, ...]] = {
    "batch": (0, 1, 3, 7),
    "layout": ("contiguous", "sliced", "transposed", "expanded-both"),
    "leading": ((), (2, 3), (0, 3)),
    "block_shape": ((5, 7),),
    "small": ("ragged-masked",),
    "beta": (0.5,),
    "optimizer": ("sgd-momentum-decay", "adamw"),
    "support": ("local", "dilated"),
    "shape": ((0, 16), (16, 0)),
    "block": ((40, 30),),
    "conv": ("aligned dilated", "blocks span pixels", "entries that only meet padding"),
}
_PATTERNS_ON_SLOW = {
    FLOAT32: ("full", "empty", "empty-rows-and-columns", "odd-blocks", "masked-ragged"),
    FLOAT64: ("masked-ragged",),
    BFLOAT16: ("masked-ragged",),
    FLOAT16: ("masked-ragged",),
}


def is_slow(row: Row) -> bool:
    """Whether the backend of ``row`` is so slow here that a test does less with it."""
    return any(backend.name == row.backend and backend.slow for backend in BACKENDS)


def is_left_out(parameters: dict[str, Any]) -> bool:
    """Whether a test with these parameters takes the slow backend that it names too long."""
    row, name = parameters.get("row"), parameters.get("name")
    if not isinstance(row, Row) or not is_slow(row) or os.environ.get("EFCN_TEST_SLOW"):
        return False
    chosen = dict(_ON_SLOW)
    if name in PATTERNS:
        chosen["name"] = _PATTERNS_ON_SLOW[row.dtype]
    return any(key in chosen and value not in chosen[key] for key, value in parameters.items())


NO_OUTPUTS, NO_INPUTS, NOTHING = (0, 16), (16, 0), (0, 0)
EMPTY_SHAPES = (NO_OUTPUTS, NO_INPUTS, NOTHING)
BATCHES = (0, 1, 2, 7, 250, 301)
LEADING = ((), (5,), (2, 3), (1, 4, 2), (0, 3))
