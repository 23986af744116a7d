"""``explain`` tells which backend runs and why, and counts what a pattern holds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.ops.explain import Spread
from efcn_sparse.ops.select import reasons, resolve
from tests import oracle
from tests.table import DTYPES, PATTERNS, pattern


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_backend_is_the_one_that_runs(dtype: torch.dtype) -> None:
    found = es.explain(pattern("square"), dtype=dtype)
    assert found.backend == resolve("auto", "cpu", dtype)
    assert found.reasons == reasons("cpu", dtype)
    assert f"backend: {found.backend} (asked for: auto)" in str(found)


def test_the_reason_is_given_for_another_device() -> None:
    found = es.explain(pattern("square"), device="cuda")
    assert found.backend == resolve("auto", "cuda", torch.float32) != "cpu"
    assert "cpu: its kernels run on CPU tensors, not cuda" in str(found)


def test_a_named_backend_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = es.SparseLinear(48, 64, pattern("square"))
    layer.backend = "reference"
    assert es.explain(layer).backend == "reference"
    missing = es.extension.ExtensionStatus(False, "it was not built", "")
    monkeypatch.setattr("efcn_sparse.ops.backends.cpu.extension_status", lambda: missing)
    layer.backend = "cpu"
    found = es.explain(layer)
    assert (found.requested, found.backend) == ("cpu", None)
    assert "backend: none (asked for: cpu)" in str(found)
    assert "cpu: the compiled extension is missing: it was not built" in str(found)


@pytest.mark.parametrize("name", PATTERNS)
def test_counts(name: str) -> None:
    p = pattern(name)
    found, support = es.explain(p), oracle.support_of(p)
    blocks = torch.zeros(p.grid, dtype=torch.int64)
    for row in range(p.grid[0]):
        blocks[row, p.col_indices[p.crow_indices[row] : p.crow_indices[row + 1]].long()] = 1
    assert found.blocks == int(blocks.sum())
    assert found.stored_entries == support.numel()
    assert found.support_entries == int(support.sum())
    assert found.flops_per_sample == 2 * support.numel()
    assert found.values_bytes == 4 * support.numel()
    assert found.density == pytest.approx(float(blocks.double().mean()))
    for spread, counts in ((found.blocks_per_row, blocks.sum(1)), (found.blocks_per_column, blocks.sum(0))):
        assert spread == Spread(int(counts.min()), pytest.approx(float(counts.double().mean())), int(counts.max()))
    runs = sum(len([run for run in "".join(map(str, row)).split("0") if run]) for row in blocks.tolist())
    assert found.mean_run_length == pytest.approx(found.blocks / runs if runs else 0.0)


def test_masked_blocks() -> None:
    assert es.explain(pattern("masked-partly")).masked_blocks == 2
    assert "2 of them masked" in str(es.explain(pattern("masked-partly")))


def test_layers_and_what_holds_them() -> None:
    layer = es.SparseLinear(48, 64, pattern("square"), dtype=torch.bfloat16)
    assert es.explain(layer).dtype == torch.bfloat16
    assert es.explain(layer).values_bytes == 2 * layer.values.numel()
    assert es.explain(SimpleNamespace(linear=layer)).blocks == layer.pattern.nnz_blocks
    assert es.explain(layer, dtype=torch.float64).values_bytes == 8 * layer.values.numel()
    assert str(es.explain(layer)).startswith("SparseLinear [64, 48], blocks 16×16, bfloat16 on cpu\n")


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (8, 0)])
def test_matrices_without_entries(shape: tuple[int, int]) -> None:
    found = es.explain(es.BlockPattern.dense(shape, (4, 4)))
    assert (found.blocks, found.flops_per_sample, found.mean_run_length) == (0, 0, 0.0)
    assert "0 stored" in str(found)


@pytest.mark.parametrize(("subject", "name"), [(torch.nn.Linear(2, 2), "Linear"), (None, "NoneType")])
def test_what_has_no_pattern_is_refused(subject: object, name: str) -> None:
    with pytest.raises(TypeError) as error:
        es.explain(subject)
    assert str(error.value) == (
        f"layer_or_pattern must be a BlockPattern, a SparseLinear or a module that holds one as .linear, got {name}"
    )
