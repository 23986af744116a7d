"""A test of the tests: each broken backend must fail the law checks that the other files run.

A mutation wraps the reference backend and spoils one thing. The rows say for which dtype, on which pattern, and which
check notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from efcn_sparse.ops.backends import BACKENDS, reference
from efcn_sparse.ops.select import resolve
from tests.ops import laws
from tests.table import BFLOAT16, FLOAT32, FLOAT64, Row, pattern

Kernel = Callable[..., None]
CHECKS: dict[str, Callable[..., None]] = {
    "spmm": lambda row, p: laws.spmm_is_dense(row, p, transpose=False, bias=True),
    "spmm-transposed": lambda row, p: laws.spmm_is_dense(row, p, transpose=True, bias=True),
    "sddmm": laws.sddmm_is_dense,
    "gradients": lambda row, p: laws.gradients_are_dense(row, p, transpose=False),
    "gradients-transposed": lambda row, p: laws.gradients_are_dense(row, p, transpose=True),
    "adjoint": laws.operations_are_adjoint,
    "accumulation": lambda row, p: laws.results_accumulate(row, p, alpha=-0.5, beta=0.75),
    "no-accumulation": lambda row, p: laws.results_accumulate(row, p, alpha=1.0, beta=0.0),
    "repetition": laws.results_repeat,
}


def _healthy_spmm(*arguments: Any) -> None:
    reference.spmm(*arguments)


def _healthy_sddmm(*arguments: Any) -> None:
    reference.sddmm(*arguments)


def _after_spmm(spoil: Callable[[Tensor], object]) -> Kernel:
    def spmm(y: Tensor, *arguments: Any) -> None:
        reference.spmm(y, *arguments)
        spoil(y)

    return spmm


def _after_sddmm(spoil: Callable[[Tensor], object]) -> Kernel:
    def sddmm(out: Tensor, *arguments: Any) -> None:
        reference.sddmm(out, *arguments)
        spoil(out)

    return sddmm


def _with_values(spoil: Callable[[Tensor], Tensor]) -> Kernel:
    def spmm(y: Tensor, x: Tensor, values: Tensor, *arguments: Any) -> None:
        reference.spmm(y, x, spoil(values), *arguments)

    return spmm


def _without(tensor: Tensor, k: int) -> Tensor:
    spoilt = tensor.clone()
    spoilt[k] = 0
    return spoilt


def _shuffled(tensor: Tensor) -> Tensor:
    return tensor.roll(1, 0)


def _bias_dropped(y: Tensor, x: Tensor, values: Tensor, bias: Tensor | None, *rest: Any) -> None:
    reference.spmm(y, x, values, None, *rest)


def _other_walk(y, x, values, bias, structure, shape, transpose, alpha, beta) -> None:
    reference.spmm(y, x, values, bias, structure, shape, not transpose, alpha, beta)


def _low_accumulation(y, x, values, bias, structure, shape, transpose, alpha, beta) -> None:
    total = torch.zeros_like(y)
    for k in range(values.shape[0]):
        only, part = torch.zeros_like(values), torch.empty_like(y)
        only[k] = values[k].masked_fill(values[k].isnan(), 0)
        reference.spmm(part, x, only, None, structure, shape, transpose, 1.0, 0.0)
        total += part
    y.copy_(alpha * (total if bias is None else total + bias) + (beta * y if beta else 0))


def _low_sum_over_the_batch(out, a, b, structure, shape, alpha, beta) -> None:
    total, part = torch.zeros_like(out), torch.empty_like(out)
    for n in range(a.shape[0]):
        reference.sddmm(part, a[n : n + 1], b[n : n + 1], structure, shape, 1.0, 0.0)
        total += part
    out.copy_(alpha * total + (beta * out if beta else 0))


def _mask_ignored_spmm(y, x, values, bias, structure, *rest) -> None:
    everything = structure._replace(mask_index=structure.mask_index[:0], masks=structure.masks[:0])
    reference.spmm(y, x, values, bias, everything, *rest)


def _mask_ignored_sddmm(out, a, b, structure, *rest) -> None:
    everything = structure._replace(mask_index=structure.mask_index[:0], masks=structure.masks[:0])
    reference.sddmm(out, a, b, everything, *rest)


def _last_row_dropped_sddmm(out, a, b, *rest) -> None:
    reference.sddmm(out, a[:-1], b[:-1], *rest)


def _alpha_ignored(*arguments: Any) -> None:
    reference.spmm(*arguments[:-2], 1.0, arguments[-1])


def _beta_ignored_sddmm(*arguments: Any) -> None:
    reference.sddmm(*arguments[:-1], 0.0)


def _out_read_at_beta_zero(y: Tensor, *arguments: Any) -> None:
    old = y.clone()
    reference.spmm(y, *arguments)
    y += 0.0 * old


def _restless(y: Tensor, *arguments: Any) -> None:
    reference.spmm(y, *arguments)
    y *= 1 + 1e-7 * torch.rand(())


class Mutation(NamedTuple):
    spmm: Kernel = _healthy_spmm
    sddmm: Kernel = _healthy_sddmm
    noticed_by: tuple[str, ...] = ()
    pattern: str = "square"
    dtypes: tuple[torch.dtype, ...] = (FLOAT64, FLOAT32, BFLOAT16)


FORWARD = ("spmm", "spmm-transposed", "gradients", "gradients-transposed", "adjoint", "accumulation")
BACKWARD = ("sddmm", "gradients", "gradients-transposed", "adjoint", "accumulation")
EXACT = (FLOAT64, FLOAT32)

MUTATIONS: dict[str, Mutation] = {
    "result-zeroed": Mutation(spmm=_after_spmm(Tensor.zero_), noticed_by=FORWARD),
    "result-scaled": Mutation(spmm=_after_spmm(lambda y: y.mul_(1 + 1e-3)), noticed_by=FORWARD, dtypes=EXACT),
    "result-negated": Mutation(spmm=_after_spmm(Tensor.neg_), noticed_by=FORWARD),
    "last-batch-row-dropped": Mutation(spmm=_after_spmm(lambda y: y[-1].zero_()), noticed_by=FORWARD),
    "last-feature-dropped": Mutation(spmm=_after_spmm(lambda y: y[:, -1].zero_()), noticed_by=FORWARD),
    "blocks-transposed": Mutation(spmm=_with_values(lambda values: values.mT), noticed_by=FORWARD),
    "blocks-shuffled": Mutation(spmm=_with_values(_shuffled), noticed_by=FORWARD),
    "first-block-dropped": Mutation(spmm=_with_values(lambda values: _without(values, 0)), noticed_by=FORWARD),
    "last-block-dropped": Mutation(spmm=_with_values(lambda values: _without(values, -1)), noticed_by=FORWARD),
    "bias-dropped": Mutation(spmm=_bias_dropped, noticed_by=("spmm", "spmm-transposed", "accumulation")),
    "the-other-walk": Mutation(spmm=_other_walk, noticed_by=FORWARD, pattern="square-symmetric"),
    "mask-ignored": Mutation(spmm=_mask_ignored_spmm, noticed_by=FORWARD[:4], pattern="masked"),
    "accumulated-in-bf16": Mutation(
        spmm=_low_accumulation, noticed_by=("spmm", "spmm-transposed"), pattern="banded", dtypes=(BFLOAT16,)
    ),
    "alpha-ignored": Mutation(spmm=_alpha_ignored, noticed_by=("accumulation",)),
    "out-read-at-beta-zero": Mutation(spmm=_out_read_at_beta_zero, noticed_by=("no-accumulation",)),
    "restless": Mutation(spmm=_restless, noticed_by=("repetition",), dtypes=EXACT),
    "gradient-zeroed": Mutation(sddmm=_after_sddmm(Tensor.zero_), noticed_by=BACKWARD),
    "gradient-transposed": Mutation(sddmm=_after_sddmm(lambda v: v.copy_(v.mT.clone())), noticed_by=BACKWARD),
    "gradient-shuffled": Mutation(sddmm=_after_sddmm(lambda v: v.copy_(_shuffled(v))), noticed_by=BACKWARD),
    "gradient-scaled": Mutation(sddmm=_after_sddmm(lambda v: v.mul_(1 + 1e-3)), noticed_by=BACKWARD, dtypes=EXACT),
    "gradient-negated": Mutation(sddmm=_after_sddmm(Tensor.neg_), noticed_by=BACKWARD),
    "gradient-of-a-block-dropped": Mutation(sddmm=_after_sddmm(lambda v: v[-1].zero_()), noticed_by=BACKWARD),
    "gradient-misses-a-sample": Mutation(sddmm=_last_row_dropped_sddmm, noticed_by=BACKWARD),
    "gradient-accumulated-in-bf16": Mutation(
        sddmm=_low_sum_over_the_batch, noticed_by=("sddmm", "gradients"), dtypes=(BFLOAT16,)
    ),
    "gradient-ignores-the-mask": Mutation(sddmm=_mask_ignored_sddmm, noticed_by=BACKWARD[:3], pattern="masked"),
    "gradient-ignores-beta": Mutation(sddmm=_beta_ignored_sddmm, noticed_by=("accumulation",)),
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Mutation], None]]:
    """Puts a mutation into the registry as the backend ``mutant``."""

    def put(mutation: Mutation) -> None:
        mutant = SimpleNamespace(NAME="mutant", why_not=lambda *_: None, spmm=mutation.spmm, sddmm=mutation.sddmm)
        monkeypatch.setitem(BACKENDS, "mutant", mutant)

    resolve.cache_clear()
    yield put
    resolve.cache_clear()


def _pattern(name: str) -> Any:
    if name != "square-symmetric":
        return pattern(name)
    rows, cols = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 1, 0])
    return laws.BlockPattern.from_blocks(rows, cols, (48, 48), (16, 16))


CASES = [(name, dtype) for name, mutation in MUTATIONS.items() for dtype in mutation.dtypes]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_mutation_is_noticed(name: str, dtype: torch.dtype, install: Callable[[Mutation], None]) -> None:
    mutation = MUTATIONS[name]
    install(mutation)
    for check in mutation.noticed_by:
        if check == "adjoint" and dtype == BFLOAT16:
            continue  # three numbers do not tell one block from the roundings of a thousand entries
        with pytest.raises(AssertionError):
            CHECKS[check](Row("mutant", "cpu", dtype), _pattern(mutation.pattern))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ["square", "square-symmetric", "masked", "banded"])
def test_a_healthy_wrapper_passes(name: str, check: str, install: Callable[[Mutation], None]) -> None:
    install(Mutation())
    for dtype in (FLOAT64, FLOAT32, BFLOAT16):
        CHECKS[check](Row("mutant", "cpu", dtype), _pattern(name))
