"""Random cases of both operations against the fp64 oracle: patterns × backends × dtypes × layouts × scalings.

``tests/ops/test_fuzz.py`` runs a fixed few of them. For longer: ``python -m tests.fuzz --minutes 30``. A case that
fails is named by its seed: ``python -m tests.fuzz --seed 123`` runs it again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests import oracle
from tests.ops.inputs import LAYOUTS, randn, random_values, within
from tests.table import BACKENDS, Row

SIDES = (1, 2, 3, 5, 6, 8, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 128)
BATCHES = (0, 1, 2, 3, 5, 8, 13, 16, 24, 25, 31, 33, 64, 127, 250, 301, 513)
MOST_BLOCKS, MOST_ENTRIES = 300, 1 << 18  # the oracle walks blocks in Python and multiplies dense matrices


@dataclass(frozen=True)
class Case:
    """What one seed stands for."""

    seed: int
    row: Row
    pattern: BlockPattern
    kind: str
    batch: int
    leading: int
    layout: str
    values_layout: str
    bias: bool
    alpha: float
    beta: float
    threads: int


def draw(seed: int, backends: Sequence[str]) -> Case:
    """The case of that seed on one of the backends."""
    r = random.Random(seed)
    name = r.choice(backends)
    backend = next(b for b in BACKENDS if b.name == name)
    pattern, kind = _draw_pattern(r)
    batch = r.choice(BATCHES[:8] if backend.slow else BATCHES)
    layout = r.choice(list(LAYOUTS))
    if layout.startswith("expanded"):
        batch = min(batch, 33)  # equal terms are rounded alike: the oracle's bound is for random ones
    return Case(
        seed, Row(backend.name, backend.device, r.choice(backend.dtypes)), pattern.to(backend.device), kind, batch,
        leading=r.choice((1, 1, 1, 2)), layout=layout,
        values_layout=r.choice(("contiguous", "unaligned", "transposed", "sliced")), bias=r.random() < 0.5,
        alpha=r.choice((1.0, 1.0, -0.5, 2.0, 0.0)), beta=r.choice((0.0, 0.0, 1.0, 0.25, -1.5)),
        threads=r.choice((1, 2, 5)),
    )  # fmt: skip


def _draw_pattern(r: random.Random) -> tuple[BlockPattern, str]:
    block = (r.choice(SIDES), r.choice(SIDES))
    most = [max(1, min(r.choice((2, 4, 9, 20)), int((MOST_ENTRIES / block[0] / block[1]) ** 0.5))) for _ in block]
    while most[0] * most[1] > MOST_BLOCKS:
        most = [(m + 1) // 2 for m in most]
    grid = [r.randint(1, m) for m in most]
    shape = tuple(g * b - (r.randrange(b) if r.random() < 0.5 else 0) for g, b in zip(grid, block, strict=True))
    if r.random() < 0.03:
        shape = r.choice(((0, shape[1]), (shape[0], 0), (0, 0)))
    generator = torch.Generator().manual_seed(r.randrange(2**31))
    density = r.choice((0.0, 0.05, 0.3, 0.6, 0.9, 1.0))
    kind = r.choice(("blocks", "entries", "band", "uneven", "masks"))
    blocks = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), generator=generator) < density
    if kind == "entries":
        return BlockPattern.from_mask(torch.rand(shape, generator=generator) < density, block), kind
    if kind == "band":
        near = torch.arange(blocks.shape[0])[:, None] - torch.arange(blocks.shape[1])
        blocks = near.abs() <= max(1, int(density * max(blocks.shape)))
    if kind == "uneven" and blocks.numel():
        blocks[0], blocks[:, -1] = True, False
    pattern = BlockPattern.from_mask(blocks, block, shape=shape)
    if kind == "masks":  # of any kind: unused, whole, empty, reaching past the edge
        masks = torch.rand(5, *block, generator=generator) < torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])[:, None, None]
        index = torch.randint(-1, 5, (pattern.nnz_blocks,), generator=generator)
        parts = (pattern.crow_indices, pattern.col_indices, shape, block)
        pattern = BlockPattern.from_bsr(*parts, mask_index=index, masks=masks)
    return pattern, kind


def _laid_out(case: Case, features: int, seed: int) -> Tensor:
    """``[..., features]`` in the layout of the case."""
    return LAYOUTS[case.layout](randn(*[1] * (case.leading - 1), case.batch, features, row=case.row, seed=seed))


def check(case: Case) -> None:
    """Both operations, their gradients and their results into ``out``, inside guards, against the oracle."""
    p, row, backend = case.pattern, case.row, case.row.backend
    torch.set_num_threads(case.threads)
    values = LAYOUTS[case.values_layout](random_values(p, row, seed=case.seed))
    for transpose in (False, True):
        out_features, in_features = p.shape[::-1] if transpose else p.shape
        x, dy = _laid_out(case, in_features, 1), _laid_out(case, out_features, 2)
        bias = randn(out_features, row=row, seed=3) if case.bias else None
        leaves = [t.detach().requires_grad_() for t in (x, values)]
        y = es.spmm(*leaves, p, transpose=transpose, bias=bias, backend=backend)
        result = oracle.spmm(x.flatten(0, -2), values, p, transpose=transpose, bias=bias)
        _assert_accurate(y.flatten(0, -2), result, "spmm")
        dx, dvalues = torch.autograd.grad(y, leaves, dy)
        _assert_accurate(dx.flatten(0, -2), oracle.spmm(dy.flatten(0, -2), values, p, transpose=not transpose), "dx")
        _assert_accurate(dvalues, oracle.sddmm(*((x, dy) if transpose else (dy, x)), p), "dvalues")
        old = randn(*y.shape, row=row, seed=4)
        out, buffer = within(old if case.beta else torch.full_like(old, float("nan")), sentinel=77.0)
        scaling = dict(alpha=case.alpha, beta=case.beta, out=out, backend=backend)
        es.spmm(x, values, p, transpose=transpose, bias=bias, **scaling)
        expected = oracle.accumulated(result, case.alpha, case.beta, old.flatten(0, -2))
        _assert_accurate(out.flatten(0, -2), expected, "spmm into out")
        _check_guards(buffer, out)
    a, b = _laid_out(case, p.shape[0], 5), _laid_out(case, p.shape[1], 6)
    old = random_values(p, row, seed=7, outside=0.0)
    out, buffer = within(old if case.beta else torch.full_like(old, float("nan")), sentinel=77.0)
    es.sddmm(a, b, p, alpha=case.alpha, beta=case.beta, out=out, backend=backend)
    expected = oracle.accumulated(oracle.sddmm(a, b, p), case.alpha, case.beta, old)
    _assert_accurate(out, expected, "sddmm into out")
    _check_guards(buffer, out)


def _assert_accurate(got: Tensor, expected: oracle.Expected, what: str) -> None:
    oracle.assert_accurate(got, expected, what, norm=False)  # of few entries, or of equal ones, a norm is no average


def _check_guards(buffer: Tensor, inner: Tensor) -> None:
    margin = (buffer.numel() - inner.numel()) // 2
    guards = torch.cat([buffer[:margin], buffer[margin + inner.numel() :]])
    assert bool((guards == 77.0).all()), "written outside out"


def run(seed: int, backends: Sequence[str]) -> None:
    """Draw and check; an error names the seed and the case."""
    case, threads = draw(seed, backends), torch.get_num_threads()
    try:
        check(case)
    except Exception as error:
        raise AssertionError(f"python -m tests.fuzz --seed {seed} --backend {' '.join(backends)}: {case}") from error
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    present = [backend.name for backend in BACKENDS if backend.missing() is None]
    parser = argparse.ArgumentParser(description="Random cases of the operations against the fp64 oracle.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, help="this case and no other")
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--backend", nargs="*", default=[b.name for b in BACKENDS if b.name in present and not b.slow])
    given = parser.parse_args()
    if given.seed is not None:
        run(given.seed, given.backend)
        return
    start, seed = time.monotonic(), given.first
    while time.monotonic() - start < 60 * given.minutes:
        run(seed, given.backend)
        seed += 1
    print(f"{seed - given.first} cases passed, seeds {given.first} to {seed - 1}, on {', '.join(given.backend)}")


if __name__ == "__main__":
    main()
