"""After the first call the host only launches: it reads no number back and makes nothing but results and workspace.

The kernels themselves are left out, so this holds for every device. ``test_cuda.py`` asks CUDA itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import efcn_sparse as es
from efcn_sparse.ops import contract
from efcn_sparse.ops.backends.triton import sddmm_kernel, spmm_kernel
from efcn_sparse.subspace.backends import triton as reading
from efcn_sparse.subspace.backends.triton import subspace_kernel
from efcn_sparse.subspace.plan import plan_of
from tests.table import DEVICE, FLOAT32, FLOAT64, needs_triton, pattern

pytestmark = needs_triton

# what only allocates, or looks at memory in another way; and the sums that a reading ends with
ALLOWED = {"aten::new_empty", "aten::unbind", "aten::select", "aten::slice", "aten::view", "aten::unsqueeze"}
ENDING = {"aten::sum", "aten::sum.dim_IntList", "aten::cat", "aten::zero_"}
KERNELS = (
    (spmm_kernel, ("spmm_kernel", "sum_pieces_kernel")),
    (sddmm_kernel, ("sddmm_kernel", "sum_stretches_kernel")),
    (subspace_kernel, ("read_copies_kernel", "add_slots_kernel", "join_places_kernel", "project_kernel")),
)
READS = (
    "item", "tolist", "cpu", "numpy", "to", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__",
)  # fmt: skip


class _Silent:
    """A kernel that notes its launches and does nothing."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(side, int) and 0 < side < 2**31 for side in grid)
        return lambda *_, **__: self.launched.append(self.name)


class _Watch(TorchDispatchMode):
    """Notes every operator that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for module, names in KERNELS:
        for name in names:
            monkeypatch.setattr(module, name, _Silent(name, found))
    return found


@pytest.fixture
def no_reads() -> Iterator[pytest.MonkeyPatch]:
    """Call ``setattr`` of it by ``_forbid`` when the first call is over."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def _forbid(patch: pytest.MonkeyPatch) -> None:
    def read(self: Tensor, *_: Any, **__: Any) -> Any:
        raise AssertionError(f"the host waits for a tensor {list(self.shape)}")

    for name in READS:
        patch.setattr(torch.Tensor, name, read)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("name", ["masked-ragged", "unbalanced", "full", "empty-rows-and-columns"])
def test_operations(
    launched: list[str], no_reads: pytest.MonkeyPatch, name: str, beta: float, dtype: torch.dtype
) -> None:
    p = pattern(name, DEVICE)
    a, b, bias, values = (
        torch.zeros(shape, dtype=dtype, device=DEVICE)
        for shape in ((40, p.shape[0]), (40, p.shape[1]), p.shape[:1], p.values_shape)
    )
    structure = list(p.structure)

    def step() -> None:
        contract._spmm_into(a, b, values, bias, structure, p.shape, False, 1.0, beta, "triton")
        contract._spmm_into(b, a, values, None, structure, p.shape, True, 1.0, beta, "triton")
        contract._sddmm_into(values, a, b, structure, p.shape, 1.0, beta, "triton")

    step()
    first, launched[:] = list(launched), []
    watch = _Watch()
    _forbid(no_reads)
    with watch:
        step()
    no_reads.undo()
    assert launched == first
    assert {"spmm_kernel", "sddmm_kernel"} <= set(first)
    assert watch.seen <= ALLOWED


def test_readings(launched: list[str], no_reads: pytest.MonkeyPatch) -> None:
    layer = es.embed(torch.nn.Conv2d(3, 4, 3, padding=1), torch.zeros(1, 3, 6, 6), support=es.Dilated(1)).to(DEVICE)
    values, plan = layer.linear.values.detach(), plan_of(layer.ties)

    def read() -> None:
        reading.squares(values, plan)
        reading.project(values, plan, True)
        reading.project(values, plan, False)

    read()
    first, launched[:] = list(launched), []
    watch = _Watch()
    _forbid(no_reads)
    with watch:
        read()
    no_reads.undo()
    assert launched == first
    assert {"read_copies_kernel", "join_places_kernel", "project_kernel"} <= set(first)
    assert watch.seen <= ALLOWED | ENDING


def test_a_model_is_read_with_one_wait_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 2, 3))
    model, order = es.embed(net, torch.zeros(1, 1, 7, 7)).to(DEVICE), []
    kept = reading.squares, torch.Tensor.tolist
    monkeypatch.setattr(reading, "squares", lambda *given: order.append("launch") or kept[0](*given))
    es.deviation(model, backend="triton")
    order.clear()
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: order.append("read") or kept[1](self))
    es.deviation(model, backend="triton")
    assert order.index("read") == order.count("launch") == 4


def test_the_watch_sees(no_reads: pytest.MonkeyPatch) -> None:
    watch = _Watch()
    with watch:
        float(torch.ones(1).sum())
        torch.ones(3).nonzero()
    assert {"aten::_local_scalar_dense", "aten::nonzero"} <= watch.seen
    _forbid(no_reads)
    with pytest.raises(AssertionError, match="the host waits"):
        bool(torch.ones(1))
