"""Where the backend cannot run it says why, before anything is launched; a launch that fails says what failed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.ops.backends import triton
from efcn_sparse.ops.backends.triton.failure import launch_named
from efcn_sparse.ops.backends.triton.tuning import Config
from efcn_sparse.ops.select import reasons, resolve
from tests.table import GPU, pattern


@pytest.fixture
def on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    resolve.cache_clear()


@pytest.mark.usefixtures("on_gpus_only")
def test_other_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.why_not("mps", torch.float32) == "its kernels run on CUDA and ROCm GPUs, not mps"
    assert triton.why_not("cuda", torch.int8) == "it has no kernels for torch.int8"
    assert "TRITON_INTERPRET=1" in str(triton.why_not("cpu", torch.float32))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton.why_not("cuda", torch.float32) == "torch sees no GPU"


@pytest.mark.usefixtures("on_gpus_only")
def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert triton.why_not("cuda", torch.float32) == "it needs compute capability 8.0 or more, this GPU has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert triton.why_not("cuda", torch.float32) is None
    assert resolve("auto", "cuda", torch.float32) == "triton"
    resolve.cache_clear()


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = triton.why_not("cuda", torch.float32)
    assert reason == "triton is not installed: pip install efcn-sparse[triton]"


def test_auto_never_interprets() -> None:
    assert resolve("auto", "cpu", torch.float32) in ("cpu", "reference")
    assert GPU or reasons("cpu", torch.float32)["triton"] is None
    assert es.explain(pattern("square")).backend in ("cpu", "reference")


def test_a_failed_launch_names_kernel_shapes_and_configuration() -> None:
    x, config = torch.zeros(3, 5), Config(16, 16, 16)
    with (
        pytest.raises(
            RuntimeError, match=r"spmm_kernel failed on x \[3, 5\] torch.float32 on cpu with Config\(block_m=16"
        ),
        launch_named("spmm_kernel", config, x=x),
    ):
        raise MemoryError("no room")
