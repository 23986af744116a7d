"""``backend="auto"`` takes the best that can run; a named backend runs or is refused, and never falls back."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.ops.backends import BACKENDS, reference
from efcn_sparse.ops.select import reasons, resolve
from tests.table import pattern


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """No choice made for a pretended backend outlives its test."""
    resolve.cache_clear()
    yield
    resolve.cache_clear()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A best backend ``swift`` for fp32 only, and ``absent``, which never runs; the list records the calls of swift."""
    calls: list[str] = []

    def spmm(*arguments: object) -> None:
        calls.append("spmm")
        reference.spmm(*arguments)  # type: ignore[arg-type]

    def sddmm(*arguments: object) -> None:
        calls.append("sddmm")
        reference.sddmm(*arguments)  # type: ignore[arg-type]

    def fp32_only(device: str, dtype: torch.dtype) -> str | None:
        return None if dtype == torch.float32 else "it multiplies fp32 only"

    swift = SimpleNamespace(NAME="swift", why_not=fp32_only, spmm=spmm, sddmm=sddmm)
    absent = SimpleNamespace(NAME="absent", why_not=lambda *_: "its machine is not here")
    others = dict(BACKENDS)
    monkeypatch.setattr("efcn_sparse.ops.select.BACKENDS", {"absent": absent, "swift": swift, **others})
    monkeypatch.setattr("efcn_sparse.ops.contract.BACKENDS", {"absent": absent, "swift": swift, **others})
    return calls


def _run(dtype: torch.dtype, backend: str, batch: int = 2) -> None:
    p = pattern("square")
    x, values = torch.randn(batch, p.shape[1], dtype=dtype), torch.randn(p.values_shape, dtype=dtype)
    dy = es.spmm(x, values, p, backend=backend)
    es.sddmm(dy, x, p, backend=backend)


def test_auto_takes_the_first_that_can(pretended: list[str]) -> None:
    _run(torch.float32, "auto")
    assert pretended == ["spmm", "sddmm"]


def test_auto_passes_over_what_cannot(pretended: list[str]) -> None:
    _run(torch.float64, "auto")
    assert pretended == []
    assert resolve("auto", "cpu", torch.float64) in ("cpu", "reference")


def test_the_gradient_runs_on_the_backend_that_was_named(pretended: list[str]) -> None:
    p = pattern("square")
    values = torch.randn(p.values_shape, requires_grad=True)
    es.spmm(torch.randn(2, p.shape[1], requires_grad=True), values, p, backend="swift").sum().backward()
    assert sorted(pretended) == ["sddmm", "spmm", "spmm"]


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("batch", [0, 2])
def test_a_named_backend_never_falls_back(batch: int) -> None:
    with pytest.raises(RuntimeError) as error:
        _run(torch.float64, "swift", batch)
    assert str(error.value) == "backend 'swift' cannot run torch.float64 on cpu: it multiplies fp32 only"
    with pytest.raises(RuntimeError) as error:
        _run(torch.float32, "absent", batch)
    assert str(error.value) == "backend 'absent' cannot run torch.float32 on cpu: its machine is not here"


@pytest.mark.parametrize("batch", [0, 2])
def test_an_unknown_backend(batch: int) -> None:
    with pytest.raises(ValueError, match="backend must be 'auto' or one of") as error:
        _run(torch.float32, "nope", batch)
    assert str(error.value) == f"backend must be 'auto' or one of {sorted(BACKENDS)}, got 'nope'"


@pytest.mark.usefixtures("pretended")
def test_reasons_are_given_best_first() -> None:
    given = reasons("cpu", torch.float64)
    assert list(given)[:2] == ["absent", "swift"]
    assert given["absent"] == "its machine is not here"
    assert given["reference"] is None


def test_without_the_extension_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = es.extension.ExtensionStatus(False, "EFCN_EXTENSION=off is set", "")
    monkeypatch.setattr("efcn_sparse.ops.backends.cpu.extension_status", lambda: missing)
    assert resolve("auto", "cpu", torch.float32) == "reference"
    with pytest.raises(RuntimeError) as error:
        _run(torch.float32, "cpu")
    assert str(error.value) == (
        "backend 'cpu' cannot run torch.float32 on cpu: the compiled extension is missing: EFCN_EXTENSION=off is set"
    )


def test_the_cpu_backend_refuses_other_devices() -> None:
    assert BACKENDS["cpu"].why_not("cuda", torch.float32) == "its kernels run on CPU tensors, not cuda"
    assert BACKENDS["cpu"].why_not("cpu", torch.int8) == "it has no kernels for torch.int8"
