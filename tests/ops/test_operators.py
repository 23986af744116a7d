"""The four operators are real ones to torch: opcheck, fake kernels, torch.compile with its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

import efcn_sparse as es
from efcn_sparse import BlockPattern
from tests.ops.inputs import randn, random_values
from tests.table import DEVICE, FLOAT32, PATTERNS, Row, pattern, rows

NAMES = ("masked-ragged", "empty")
QUICK = rows(FLOAT32, where=lambda backend: not backend.slow)  # what torch is told does not depend on the backend
ONE = [row for row in QUICK if not row.marks][-1:]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _sample(row: Row, p: BlockPattern) -> dict[str, Tensor]:
    return {
        "x": randn(4, p.shape[1], row=row, seed=1),
        "dy": randn(4, p.shape[0], row=row, seed=2),
        "values": random_values(p, row, outside=0.0),
        "bias": randn(p.shape[0], row=row, seed=3),
    }


@pytest.mark.parametrize("row", QUICK)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_spmm_and_sddmm(row: Row, name: str) -> None:
    p = pattern(name, row.device)
    s = {key: tensor.requires_grad_() for key, tensor in _sample(row, p).items()}
    structure, ops = list(p.structure), torch.ops.efcn_sparse
    opcheck(ops.spmm.default, (s["x"], s["values"], s["bias"], structure, p.shape, False, row.backend))
    opcheck(ops.spmm.default, (s["dy"], s["values"], None, structure, p.shape, True, row.backend))
    opcheck(ops.sddmm.default, (s["dy"], s["x"], structure, p.shape, p.block_shape, row.backend))


@pytest.mark.parametrize("row", QUICK)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_of_the_accumulating_operators(row: Row, name: str) -> None:
    p = pattern(name, row.device)
    s, structure, ops = _sample(row, p), list(p.structure), torch.ops.efcn_sparse
    y, old = torch.ones_like(s["dy"]), torch.ones_like(s["values"])
    opcheck(ops.spmm_.default, (y, s["x"], s["values"], s["bias"], structure, p.shape, False, 0.5, 2.0, row.backend))
    opcheck(ops.sddmm_.default, (old, s["dy"], s["x"], structure, p.shape, 0.5, 2.0, row.backend))


@pytest.mark.parametrize("name", PATTERNS)
def test_fake_kernels_know_the_shapes(name: str) -> None:
    p = pattern(name)
    x, values = torch.empty(2, 3, p.shape[1], device="meta"), torch.empty(p.values_shape, device="meta")
    y = es.spmm(x, values, p)
    assert (y.device.type, tuple(y.shape)) == ("meta", (2, 3, p.shape[0]))
    assert es.spmm(y, values, p, transpose=True).shape == x.shape
    assert es.sddmm(y, x, p).shape == values.shape


class _Mixer(nn.Module):
    """Two sparse layers among ordinary ones, with a residual sum."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = es.SparseLinear(24, 40, BlockPattern.random((40, 24), (8, 8), 0.5, generator))
        mask = torch.rand((24, 40), generator=generator) < 0.3
        self.down = es.SparseLinear(40, 24, BlockPattern.from_mask(mask, (8, 16)), bias=False)
        self.up.backend = self.down.backend = backend
        self.norm = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(torch.relu(self.up(x))))


def _loss_and_gradients(call: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    loss = call(x).square().mean()
    loss.backward()
    return [loss.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_compiled_models_train_alike(row: Row) -> None:
    _compiled_trains_alike(row.backend, row.device, "aot_eager")


@pytest.mark.slow  # the C++ compiler runs; that it compiles at all is above
def test_inductor_trains_alike() -> None:
    _compiled_trains_alike("auto", DEVICE, "inductor")


def _compiled_trains_alike(backend: str, device: str, compiler: str) -> None:
    torch.manual_seed(0)
    model, x = _Mixer(backend).to(device), torch.randn(2, 5, 24).to(device)
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    expected, got = (_loss_and_gradients(call, model, x) for call in (model, compiled))
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("row", ONE)
def test_one_compilation_for_every_batch_size(row: Row) -> None:
    model = _Mixer(row.backend).to(row.device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    compiled(randn(2, 5, 24, row=row, seed=1))
    once = counter.frame_count
    for batch in (3, 17, 40):
        x = randn(batch, 5, 24, row=row, seed=batch)
        torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == once


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_compiled_functions_with_every_argument(row: Row) -> None:
    p = pattern("masked-ragged", row.device)
    s = _sample(row, p)

    def step(x: Tensor, dy: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = es.spmm(x, values, p, bias=bias, backend=row.backend)
        dx = es.spmm(dy, values, p, transpose=True, backend=row.backend)
        return y, dx, es.sddmm(dy, x, p, backend=row.backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(**s), step(**s), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("row", rows(FLOAT32))
def test_compiled_accumulation(row: Row) -> None:
    p = pattern("masked-ragged", row.device)
    s = _sample(row, p)

    def step(x: Tensor, dy: Tensor, values: Tensor) -> Tensor:
        return es.sddmm(dy, x, p, out=values, alpha=-0.1, beta=0.9, backend=row.backend)

    expected, got = s["values"].clone(), s["values"].clone()
    with torch.no_grad():
        step(s["x"], s["dy"], expected)
        torch.compile(step, fullgraph=True, backend="aot_eager")(s["x"], s["dy"], got)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("row", ONE)
def test_compiled_under_autocast(row: Row) -> None:
    model, x = _Mixer(row.backend).to(row.device), randn(6, 24, row=row, seed=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast(row.device, torch.bfloat16):
        torch.testing.assert_close(compiled(x), model(x))


def test_traced_symbolically() -> None:
    """torch.fx records the operations, the pattern as an attribute, once for layers that share it."""
    model, x = _Mixer("auto"), torch.randn(6, 24)
    shared = nn.Sequential(model, es.SparseLinear(24, 40, model.up.pattern), model.down)
    traced = torch.fx.symbolic_trace(shared)
    traced.graph.lint()
    assert torch.equal(traced(x), shared(x))
    kept = [node.target for node in traced.graph.nodes if "_block_pattern" in str(node.target)]
    assert (len(kept), len(set(kept))) == (4, 2)
    traced(x).sum().backward()
    assert model.up.values.grad is not None
    sampled = torch.fx.symbolic_trace(lambda a, b: es.sddmm(a, b, model.up.pattern, alpha=1.0))
    a = torch.randn(6, 40)
    assert torch.equal(sampled(a, x), es.sddmm(a, x, model.up.pattern))
