"""Steps on a CUDA device wait for nothing, allocate no metadata and can be captured; models move there and back.

On a GPU, or ``python -m tests.host_cuda pytest tests/host_cuda/test_device.py``.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from tests.table import COMPILED, GPU, pattern

pytestmark = pytest.mark.skipif(not GPU, reason="needs a CUDA device: python -m tests.host_cuda pytest tests/host_cuda")
on_host = pytest.mark.skipif(COMPILED or not GPU, reason="asks the CUDA device that is the host's memory")


def _native() -> Any:
    return sys.modules["efcn_host_cuda_device"].native


def _net() -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    net = nn.Sequential(es.embed(conv, torch.zeros(1, 3, 5, 5), support=es.Dilated(1)), nn.Flatten())
    return net.append(es.SparseLinear(100, 32, es.BlockPattern.random((32, 100), (8, 10), 0.3))).to("cuda")


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "plain": lambda net: _sgd(net.parameters()),
    "fused": lambda net: es.FusedOptimizer(net, _sgd),
    "inside": lambda net: es.FusedOptimizer(net, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-3), inside=True),
    "fused, clipped": lambda net: es.FusedOptimizer(net, _sgd, max_norm=0.5),
    "adamw, fused": lambda net: es.FusedOptimizer(net, lambda p: torch.optim.AdamW(p, capturable=True)),
}


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, autocast: bool = False) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast, cache_enabled=False):
        loss = net(x).float().square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_a_step_waits_for_nothing(name: str, autocast: bool) -> None:
    net, x = _net(), torch.randn(4, 3, 5, 5, device="cuda")
    optimizer = MAKERS[name](net)
    _step(net, optimizer, x, autocast)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(net, optimizer, x, autocast)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["fused", "inside", "adamw, fused"])
def test_a_graph_of_a_fused_step_is_the_step(name: str) -> None:
    nets = [_net(), _net()]
    eager, captured = (MAKERS[name](net) for net in nets)
    batches = [torch.randn(4, 3, 5, 5, device="cuda") for _ in range(5)]
    losses = [_step(nets[0], eager, x).clone() for x in batches]
    x, side = batches[0].clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in batches[:3]:
            x.copy_(batch)
            _step(nets[1], captured, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = _step(nets[1], captured, x)
    for batch, expected in zip(batches[3:], losses[3:], strict=True):
        x.copy_(batch)
        graph.replay()
        assert torch.equal(loss, expected)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


@on_host
@pytest.mark.parametrize("name", ["masked-ragged", "square"])  # without long rows, which are summed in a workspace
def test_an_operation_allocates_its_result_only(name: str) -> None:
    p = pattern(name, "cuda")
    x, values = torch.randn(8, p.shape[1], device="cuda"), torch.randn(p.values_shape, device="cuda")
    y = es.spmm(x, values, p)
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "spmm": (lambda: es.spmm(x, values, p), 1),
        "spmm, transposed": (lambda: es.spmm(y, values, p, transpose=True), 1),
        "sddmm": (lambda: es.sddmm(y, x, p), 1),
        "spmm into": (lambda: es.spmm(x, values, p, out=y), 0),
        "sddmm into": (lambda: es.sddmm(y, x, p, out=values, beta=0.5), 0),
    }
    for what, (call, expected) in calls.items():
        call()
        _native().forget_waits()
        before = _native().allocations()
        call()
        assert (what, _native().allocations() - before) == (what, expected)
        assert _native().waits() == {}


@pytest.mark.parametrize("to", ["cpu", "cuda"])
def test_a_checkpoint_is_loaded_onto_either_device(to: str) -> None:
    net, file = _net(), io.BytesIO()
    x = torch.randn(4, 3, 5, 5, device="cuda")
    optimizer = MAKERS["fused"](net)
    _step(net, optimizer, x)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, map_location=to)
    twin = _net().to(to)
    twin_optimizer = MAKERS["fused"](twin)
    twin.load_state_dict(saved["net"])
    twin_optimizer.load_state_dict(saved["optimizer"])
    found, expected = _step(twin, twin_optimizer, x.to(to)), _step(net, optimizer, x)
    assert found.device.type == to
    torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-4, atol=1e-5)
    for one, other in zip(twin.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-5)


def test_a_model_is_read_projected_copied_and_taken_back() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1).cuda()
    layer = es.embed(conv, torch.zeros(1, 3, 5, 5, device="cuda"), support=es.Dilated(1))
    with torch.no_grad():
        layer.linear.values.add_(0.01)
    twin = copy.deepcopy(layer).cpu()
    assert es.deviation(layer).delta == pytest.approx(es.deviation(twin).delta, rel=1e-5)
    es.project(layer, "cnn")
    es.project(twin, "cnn")
    back = es.unembed(layer)
    assert back.weight.is_cuda
    torch.testing.assert_close(back.weight.cpu(), es.unembed(twin).weight)


def test_weights_as_a_tensor_of_torch() -> None:
    layer = _net()[2]
    bsr = layer.weight_bsr()
    assert bsr.is_cuda
    assert bsr.values().data_ptr() == layer.values.data_ptr()


# -- the device itself -------------------------------------------------------------------------------------------


def _refused() -> dict[str, tuple[Callable[[], Any], str]]:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
    return {
        "two devices": (lambda: here + there, "Expected all tensors to be on the same device"),
        "two devices in a list": (lambda: torch.cat([there, here]), "Expected all tensors to be on the same device"),
        "a number where none is taken": (lambda: torch.addmm(torch.tensor(1.0), there, there), "same device"),
        "a generator of the CPU": (
            lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
            "Expected a 'cuda' device type for generator",
        ),
        "a product of integers": (lambda: there.long() @ there.long(), "not implemented for 'Long'"),
        "indices of the GPU into the CPU": (lambda: here[torch.zeros(1, dtype=torch.long, device="cuda")], "device"),
    }


@on_host
@pytest.mark.parametrize("what", list(_refused()) if GPU else [])
def test_the_device_refuses(what: str) -> None:
    call, message = _refused()[what]
    with pytest.raises(RuntimeError, match=message):
        call()


def test_the_device_takes() -> None:
    there = torch.ones(2, 3, device="cuda")
    assert (there * torch.tensor(2.0)).is_cuda
    assert there[torch.tensor([1])].is_cuda
    assert torch.equal(torch.zeros(2, 3).copy_(there), torch.ones(2, 3))
    assert torch.equal(there.t()[1:].contiguous().cpu(), torch.ones(2, 2))


@on_host
def test_the_device_sees_who_waits() -> None:
    there = torch.ones(3, device="cuda")
    for call in (lambda: float(there.sum()), there.nonzero, there.cpu, lambda: there[there > 0]):
        _native().forget_waits()
        call()
        assert _native().waits()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchronizing"):
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        there.sum().item()


@on_host
def test_a_kernel_takes_no_tensor_of_the_cpu() -> None:
    from efcn_sparse.ops.backends.triton import launch_spmm
    from efcn_sparse.pattern import Structure

    p = pattern("square", "cuda")
    x, values = torch.ones(4, p.shape[1], device="cuda"), torch.ones(p.values_shape, device="cuda")
    with pytest.raises(RuntimeError, match="cannot be accessed from Triton"):
        launch_spmm.run(
            torch.ones(4, p.shape[0]), x, values, None, Structure.of(list(p.structure)), p.shape, False, 1.0, 0.0
        )


def test_tangents_that_are_zero() -> None:
    """Forward mode makes them without memory."""
    at, x = torch.tensor([1, 0], device="cuda"), torch.randn(2, 2, device="cuda")

    def place(values: Tensor) -> Tensor:
        return torch.zeros(3, 2, device="cuda").index_copy(0, at, values)

    y, dy = torch.func.jvp(place, (x,), (2 * x,))
    assert torch.equal(dy, 2 * y)
    assert torch.equal(y[:2], x[[1, 0]])
