"""What only a GPU can show: graphs, compiled models, no waiting, offsets past 2³¹, refusals between devices.

EFCN_TEST_DEVICE=cuda pytest tests/triton/test_cuda.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import efcn_sparse as es
from efcn_sparse import BlockPattern
from efcn_sparse.ops.backends.triton.device import device_of
from efcn_sparse.ops.backends.triton.tiles import RULES, family
from tests import oracle
from tests.ops.inputs import randn
from tests.oracle import assert_accurate
from tests.table import BFLOAT16, FLOAT32, GPU, Row, pattern

pytestmark = pytest.mark.skipif(not GPU, reason="needs a GPU: EFCN_TEST_DEVICE=cuda")
DTYPES = [FLOAT32, BFLOAT16]
GIB = 1 << 30


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _net(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    up = es.SparseLinear(96, 128, BlockPattern.random((128, 96), (16, 16), 0.4, generator))
    mask = torch.rand((64, 128), generator=generator) < 0.3
    down = es.SparseLinear(128, 64, BlockPattern.from_mask(mask, (8, 16)), bias=False)
    return nn.Sequential(up, nn.ReLU(), down).to("cuda", dtype)


def _step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    loss = net(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_of_a_training_step_is_the_step(dtype: torch.dtype) -> None:
    nets = [_net(dtype), _net(dtype)]
    eager, captured = (torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for net in nets)
    batches = [torch.randn(48, 96).to("cuda", dtype) for _ in range(8)]
    losses = [_step(nets[0], eager, x).detach().clone() for x in batches]

    x = batches[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first steps make schedules, compile kernels and fill the optimizer's state
        for batch in batches[:3]:
            x.copy_(batch)
            _step(nets[1], captured, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    captured.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = _step(nets[1], captured, x)
    for batch, expected in zip(batches[3:], losses[3:], strict=True):
        x.copy_(batch)
        graph.replay()
        assert torch.equal(loss, expected)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_capture_without_a_step_before_it_is_refused() -> None:
    p = BlockPattern.dense((32, 32), (16, 16)).to("cuda")
    x, values = torch.randn(4, 32, device="cuda"), torch.randn(p.values_shape, device="cuda")
    torch.cuda.synchronize()
    with pytest.raises(RuntimeError, match="run the step once before it"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        es.spmm(x, values, p, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_waits_after_the_first_step(dtype: torch.dtype) -> None:
    net, x = _net(dtype), torch.randn(48, 96).to("cuda", dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    twin = es.embed(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 8, 8), support=es.Dilated(1)).to("cuda", dtype)
    _step(net, optimizer, x)
    es.project(twin, "cnn")
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(net, optimizer, x)
        es.project(twin, "cnn")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_model_is_one_graph() -> None:
    net, x = _net(FLOAT32), torch.randn(48, 96, device="cuda")
    counter = CompileCounterWithBackend("aot_eager")
    torch.compile(net, fullgraph=True, backend=counter)(x)
    assert counter.frame_count == 1


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_is_the_model(mode: str) -> None:
    net, x = _net(FLOAT32), torch.randn(48, 96, device="cuda")
    compiled = torch.compile(net, fullgraph=True, mode=mode)
    for _ in range(3):  # the third replays
        torch.compiler.cudagraph_mark_step_begin()
        got = _gradients(compiled, net, x)
    for one, other in zip(got, _gradients(net, net, x), strict=True):
        torch.testing.assert_close(one, other)


def _gradients(call: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor) -> list[Tensor]:
    net.zero_grad()
    loss = call(x).square().mean()
    loss.backward()
    return [loss.detach().clone(), *(parameter.grad.clone() for parameter in net.parameters())]  # type: ignore[union-attr]


def test_auto_takes_triton() -> None:
    net = _net(FLOAT32)
    assert es.explain(net[0]).backend == "triton"
    assert torch.equal(net[0](torch.ones(2, 96, device="cuda")), _by_name(net[0], torch.ones(2, 96, device="cuda")))


def _by_name(layer: es.SparseLinear, x: Tensor) -> Tensor:
    return es.spmm(x, layer.values, layer.pattern, bias=layer.bias, backend="triton")


def _needs(gib: int) -> None:
    free = torch.cuda.mem_get_info()[0] // GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free} are free")


def test_activations_past_two_to_the_31() -> None:
    _needs(16)
    batch, features = 150_000, 16_384
    assert batch * features > 2**31
    mask = torch.zeros(4, features // 16, dtype=torch.bool)
    mask[0, 0] = mask[1, -1] = mask[3, -1] = True
    p = BlockPattern.from_mask(mask, (16, 16), shape=(64, features)).to("cuda")
    row = Row("triton", "cuda", BFLOAT16)
    x = torch.zeros(batch, features, dtype=BFLOAT16, device="cuda")
    x[-5:], values = randn(5, features, row=row, seed=1), randn(*p.values_shape, row=row, seed=2)
    y = es.spmm(x, values, p, backend="triton")
    assert not bool(y[:-5].any())
    assert_accurate(y[-5:], oracle.spmm(x[-5:], values, p), "spmm")
    assert_accurate(es.sddmm(y, x, p, backend="triton"), oracle.sddmm(y[-5:], x[-5:], p), "sddmm")
    dx = es.spmm(y, values, p, transpose=True, backend="triton")
    assert_accurate(dx[-5:], oracle.spmm(y[-5:], values, p, transpose=True), "spmm, transposed")


def test_values_past_two_to_the_31() -> None:
    _needs(24)
    side = 128 * 363
    p = BlockPattern.dense((side, side), (128, 128)).to("cuda")
    assert p.nnz_blocks * 128 * 128 > 2**31
    values = torch.zeros(p.values_shape, dtype=BFLOAT16, device="cuda")
    values[-1] = 1.0
    x = torch.zeros(2, side, dtype=BFLOAT16, device="cuda")
    x[:, -128:] = 1.0
    y = es.spmm(x, values, p, backend="triton")
    assert bool((y[:, -128:] == 128).all())
    assert not bool(y[:, :-128].any())
    es.sddmm(x, x, p, out=values, beta=1.0, backend="triton")
    assert bool((values[-1] == 3.0).all())
    assert not bool(values[:-1].any())


def test_tensors_on_two_devices_are_refused() -> None:
    p = pattern("square")
    x, values = torch.randn(5, p.shape[1]), torch.randn(p.values_shape)
    with pytest.raises(ValueError, match="x must be on the device of values, cpu, got cuda:0"):
        es.spmm(x.cuda(), values, p.to("cuda"))
    with pytest.raises(ValueError, match=r"pattern must be on the device of x, cuda:0, got cpu; use pattern.to\(...\)"):
        es.spmm(x.cuda(), values.cuda(), p)
    with pytest.raises(ValueError, match="pattern must be on the device of x, cpu, got cuda:0"):
        es.spmm(x, values, p.to("cuda"))


def test_too_little_shared_memory_is_told_before_the_launch(tuned: Callable[..., None]) -> None:
    tuned(block_m=256, block_n=256, block_k=256, stages=1)
    p = BlockPattern.dense((256, 256), (256, 256)).to("cuda")
    x, values = (torch.ones(*shape, dtype=torch.float64, device="cuda") for shape in ((9, 256), p.values_shape))
    with pytest.raises(RuntimeError, match=r"spmm in torch.float64 needs \d+ bytes of shared memory .* name smaller"):
        es.spmm(x, values, p, backend="triton")


def test_a_launch_that_fails_says_what_failed(tuned: Callable[..., None]) -> None:
    tuned(block_m=16, block_n=16, block_k=16, warps=64)  # no GPU has so many warps in a program
    p = pattern("square", "cuda")
    x, values = torch.ones(4, p.shape[1], device="cuda"), torch.ones(p.values_shape, device="cuda")
    with pytest.raises(RuntimeError, match=r"spmm_kernel failed on x \[4, 48\] torch.float32 on cuda:0, .*64 warps"):
        es.spmm(x, values, p, backend="triton")


def test_the_rule_knows_the_architecture() -> None:
    found = device_of(torch.device("cuda"))
    assert found.processors > 0
    assert found.shared_memory >= 64 << 10
    assert family(found.arch) in RULES
