"""Where the backend cannot run it says why, before anything is launched; a launch that fails says what failed."""

from __future__ import annotations

import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch

import efcn_sparse as es
from efcn_sparse.ops.backends import triton
from efcn_sparse.ops.backends.triton import device, launch, sddmm_kernel, spmm_kernel
from efcn_sparse.ops.select import reasons, resolve
from efcn_sparse.subspace.backends.triton import subspace_kernel
from tests.table import GPU, needs_triton, pattern


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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0) if device.index == 1 else (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    old, new = torch.device("cuda:0"), torch.device("cuda:1")
    reason = "it needs compute capability 8.0 or more, cuda:0 (NVIDIA T4) has 7.5"
    assert triton.why_not(old, torch.float32) == triton.why_not("cuda:0", torch.float32) == reason
    assert triton.why_not(new, torch.float32) is None
    assert triton.why_not("cuda:2", torch.float32) == "torch sees 2 GPUs, none is cuda:2"
    assert resolve("auto", new, torch.float32) == "triton"  # beside a GPU that is too old
    assert resolve("auto", old, torch.float32) == "reference"
    with pytest.raises(
        RuntimeError, match=r"backend 'triton' cannot run torch.float32 on cuda:0: it needs .*NVIDIA T4"
    ):
        resolve("triton", old, torch.float32)
    resolve.cache_clear()


def test_an_interpreter_that_fails_is_told_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(launch, "count_kernel", _Broken())
    expected = r"^Triton \S+ cannot interpret its kernels with NumPy \S+: out of resource: shared memory$"
    assert re.match(expected, str(device.why_not_interpreting.__wrapped__()))
    monkeypatch.setattr(device, "why_not_interpreting", device.why_not_interpreting.__wrapped__)
    assert "cannot interpret" in str(triton.why_not("cpu", torch.float32))


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = triton.why_not("cuda", torch.float32)
    assert reason == "triton is not installed: pip install efcn-sparse[triton]"


@needs_triton
def test_auto_never_interprets() -> None:
    assert resolve("auto", "cpu", torch.float32) in ("cpu", "reference")
    assert GPU or reasons("cpu", torch.float32)["triton"] is None
    assert es.explain(pattern("square")).backend in ("cpu", "reference")


def test_a_pattern_from_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    p, elsewhere = pattern("square"), property(lambda self: torch.device("cuda:1"))
    x, dy, values = torch.zeros(2, p.shape[1]), torch.zeros(2, p.shape[0]), torch.zeros(p.values_shape)
    monkeypatch.setattr(es.BlockPattern, "device", elsewhere, raising=False)
    message = r"pattern must be on the device of {}, cpu, got cuda:1; use pattern.to\(...\)"
    with pytest.raises(ValueError, match=message.format("x")):
        es.spmm(x, values, p, backend="triton")
    with pytest.raises(ValueError, match=message.format("a")):
        es.sddmm(dy, x, p, backend="triton")


class _Broken:
    """A kernel that no GPU can launch."""

    def __getitem__(self, grid: tuple[int, ...]) -> None:
        raise MemoryError("out of resource: shared memory")


@needs_triton
@pytest.mark.skipif(GPU, reason="kernels are replaced on the CPU; test_cuda.py has a launch that fails")
def test_every_launch_names_kernel_shapes_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    p = pattern("square")
    x, dy, values = torch.zeros(2, 48), torch.zeros(2, 64), torch.zeros(p.values_shape)
    twin = es.embed(torch.nn.Conv2d(2, 4, 3, bias=False), torch.zeros(1, 2, 5, 5))
    out_of_room = r"MemoryError: out of resource: shared memory"
    cases = (
        (spmm_kernel, "spmm_kernel", r"x \[2, 48\] torch.float32 on cpu, .* with tile \d+×",
         lambda: es.spmm(x, values, p, backend="triton")),
        (sddmm_kernel, "sddmm_kernel", r"a \[2, 64\] torch.float32 on cpu, .* with tile \d+×",
         lambda: es.sddmm(dy, x, p, backend="triton")),
        (subspace_kernel, "project_kernel", r"values \[.*\] torch.float32 on cpu, .* with \d+ tasks of ",
         lambda: es.project(twin, "lcn", backend="triton")),
        (subspace_kernel, "read_copies_kernel", r"values \[.*\] torch.float32 on cpu, .* with \d+ tasks of ",
         lambda: es.deviation(twin, backend="triton")),
    )  # fmt: skip
    for module, kernel, told, call in cases:
        monkeypatch.setattr(module, kernel, _Broken())
        with pytest.raises(RuntimeError, match=f"{kernel} failed on {told}.*{out_of_room}"):
            call()


def test_ties_on_another_device_than_the_weights() -> None:
    twin = es.embed(torch.nn.Conv2d(2, 4, 3), torch.zeros(1, 2, 5, 5))
    twin.ties = SimpleNamespace(maps=torch.zeros(1, device="meta"))
    with pytest.raises(ValueError, match="ties and weights on one device, got meta and cpu in the embedded conv"):
        es.deviation(twin)
