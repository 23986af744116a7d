"""alpha, beta and out: results accumulate in place, and out is never read where beta is 0."""

from __future__ import annotations

import pytest
import torch

import efcn_sparse as es
from tests import oracle
from tests.ops import laws
from tests.ops.inputs import randn, random_values
from tests.table import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, PATTERNS, Row, cases, is_slow, pattern, rows

SCALINGS = ((1.0, 0.0), (-0.5, 1.0), (-0.5, 0.75), (0.0, 2.0))
_FEWER = ((-0.5, 0.0), (2.0, 0.75))  # Triton's kernels branch where beta is 0, and nowhere else


def _scalings(row: Row) -> tuple[tuple[float, float], ...]:
    return _FEWER if is_slow(row) else SCALINGS


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS))
def test_out_is_alpha_result_plus_beta_out(row: Row, name: str) -> None:
    for alpha, beta in _scalings(row):
        laws.results_accumulate(row, pattern(name, row.device), alpha=alpha, beta=beta)


@pytest.mark.parametrize(("row", "name"), cases(["ragged", "masked-ragged", "empty"]))
def test_an_empty_batch_only_scales_out(row: Row, name: str) -> None:
    for alpha, beta in _scalings(row):
        laws.results_accumulate(row, pattern(name, row.device), batch=0, alpha=alpha, beta=beta)


@pytest.mark.parametrize("row", rows())
@pytest.mark.parametrize("batch", [1, 250, 301])
def test_batches_that_are_split(row: Row, batch: int) -> None:
    for beta in (0.75, 1.0):
        laws.results_accumulate(row, pattern("masked-ragged", row.device), batch=batch, alpha=-0.5, beta=beta)
        laws.results_accumulate(row, pattern("mid-blocks", row.device), batch=batch, alpha=-0.5, beta=beta)


@pytest.mark.parametrize("row", rows(FLOAT32))
@pytest.mark.parametrize("batch", [3, 250, 700])
def test_a_step_far_below_the_weights_is_rounded_once(row: Row, batch: int) -> None:
    p = es.BlockPattern.dense((128, 192), (64, 64)).to(row.device)
    a, b = randn(batch, 128, row=row, seed=1), randn(batch, 192, row=row, seed=2)
    values = 1 + random_values(p, row).abs()
    expected = oracle.accumulated(oracle.sddmm(a, b, p), -1e-4, 1.0, values)
    es.sddmm(a, b, p, out=values, alpha=-1e-4, beta=1.0, backend=row.backend)
    error = (values.cpu().double() - expected.exact).abs() / expected.exact.abs()
    assert float(error.max()) < 1.1 * 2**-24


@pytest.mark.parametrize("row", rows(FLOAT64, FLOAT32))
def test_sddmm_into_values_is_a_step_of_sgd_with_weight_decay(row: Row) -> None:
    p, lr, decay = pattern("masked-ragged", row.device), 0.1, 0.01
    x, dy = randn(12, p.shape[1], row=row, seed=1), randn(12, p.shape[0], row=row, seed=2)
    stepped = random_values(p, row, outside=0.0).requires_grad_()
    fused = stepped.detach().clone()
    for _ in range(3):
        stepped.grad = None
        es.spmm(x, stepped, p, backend=row.backend).backward(dy)
        torch.optim.SGD([stepped], lr=lr, weight_decay=decay).step()
        with torch.no_grad():
            es.sddmm(dy, x, p, out=fused, alpha=-lr, beta=1 - lr * decay, backend=row.backend)
    torch.testing.assert_close(fused, stepped.detach())
    assert bool((fused[~oracle.support_of(p)] == 0).all())


@pytest.mark.parametrize(("row", "name"), cases(PATTERNS, BFLOAT16, FLOAT16))
def test_16_bits_accumulate_into_fp32(row: Row, name: str) -> None:
    p = pattern(name, row.device)
    wide = row._replace(dtype=FLOAT32)
    for batch in (0, 20, 301):
        a, b = randn(batch, p.shape[0], row=row, seed=3), randn(batch, p.shape[1], row=row, seed=4)
        old = random_values(p, wide, seed=12, outside=0.0)
        for alpha, beta in _scalings(row):
            out = random_values(p, wide, seed=12) if beta else torch.full_like(old, float("nan"))
            assert es.sddmm(a, b, p, out=out, alpha=alpha, beta=beta, backend=row.backend) is out
            expected = oracle.accumulated(oracle.sddmm(a, b, p), alpha, beta, old)
            oracle.assert_accurate(out, expected, "sddmm into fp32")  # by the bound of fp32


@pytest.mark.parametrize("row", rows(BFLOAT16, FLOAT16))
def test_only_sddmm_takes_a_wider_out_and_only_fp32(row: Row) -> None:
    p = pattern("square", row.device)
    x, dy = randn(5, p.shape[1], row=row, seed=1), randn(5, p.shape[0], row=row, seed=2)
    values = random_values(p, row)
    other = BFLOAT16 if row.dtype == FLOAT16 else FLOAT16
    for dtype in (FLOAT64, other):
        with pytest.raises(
            TypeError, match=rf"^out must have the dtype of a, {row.dtype} or torch.float32, got {dtype}"
        ):
            es.sddmm(dy, x, p, out=values.to(dtype), backend=row.backend)
    with pytest.raises(TypeError, match=rf"^out must have the dtype of x, {row.dtype}, got torch.float32"):
        es.spmm(x, values, p, out=dy.float(), backend=row.backend)
    with pytest.raises(TypeError, match=rf"^out must have the dtype of a, torch.float32, got {row.dtype}"):
        es.sddmm(dy.float(), x.float(), p, out=values, backend=row.backend)


@pytest.mark.parametrize("row", rows(BFLOAT16))
def test_fp32_out_under_autocast_and_without_data(row: Row) -> None:
    p = pattern("masked-ragged", row.device)
    x, dy = randn(5, p.shape[1], row=row, seed=1), randn(5, p.shape[0], row=row, seed=2)
    plain = torch.zeros(p.values_shape, device=row.device)
    under = plain.clone()
    es.sddmm(dy, x, p, out=plain, beta=1.0, backend=row.backend)
    with torch.autocast(row.device, FLOAT16):
        es.sddmm(dy, x, p, out=under, beta=1.0, backend=row.backend)
    assert torch.equal(under, plain)
    torch.library.opcheck(
        torch.ops.efcn_sparse.sddmm_, (plain, dy, x, p.structure, p.shape, 1.0, 1.0, row.backend),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_writing_into_out_shows_in_its_version(row: Row) -> None:
    p = pattern("square", row.device)
    values = random_values(p, row).requires_grad_()
    x = randn(3, p.shape[1], row=row, seed=1).requires_grad_()
    y = es.spmm(x, values, p, backend=row.backend)
    with torch.no_grad():
        es.sddmm(torch.ones_like(y), x, p, out=values, alpha=-0.1, beta=1.0, backend=row.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("row", rows(FLOAT32))
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0, 3)])
def test_out_has_the_leading_dimensions_of_x(row: Row, leading: tuple[int, ...]) -> None:
    p = pattern("ragged", row.device)
    x, values = randn(*leading, p.shape[1], row=row, seed=1), random_values(p, row)
    out = torch.empty(*leading, p.shape[0], dtype=row.dtype, device=row.device)
    assert es.spmm(x, values, p, out=out, backend=row.backend) is out
    assert torch.equal(out, es.spmm(x, values, p, backend=row.backend))


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_out_without_features(row: Row) -> None:
    p = es.BlockPattern.dense((0, 8), (4, 4)).to(row.device)
    x, out = randn(2, 3, 8, row=row, seed=1), torch.empty(2, 3, 0, dtype=row.dtype, device=row.device)
    assert es.spmm(x, random_values(p, row), p, out=out, backend=row.backend) is out


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_a_side_without_inputs_still_accumulates(row: Row) -> None:
    p = es.BlockPattern.dense((6, 0), (4, 4)).to(row.device)
    x, bias, out = randn(3, 0, row=row, seed=1), randn(6, row=row, seed=2), randn(3, 6, row=row, seed=3)
    expected = 2 * bias + 0.5 * out
    es.spmm(x, random_values(p, row), p, bias=bias, out=out, alpha=2.0, beta=0.5, backend=row.backend)
    torch.testing.assert_close(out, expected)
