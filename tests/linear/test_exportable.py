"""``exportable`` gives a model in torch's own operations that computes the same from the stored blocks alone."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import efcn_sparse as es
from tests.table import BFLOAT16, DTYPES, FLOAT16, FLOAT32, FLOAT64, PATTERNS, dtype_name, pattern

LIMITS = {FLOAT64: 1e-13, FLOAT32: 1e-5, BFLOAT16: 1e-2, FLOAT16: 2e-3}


def _ours(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if "efcn_sparse" in str(node.target)]


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    assert got.shape == expected.shape
    error = (got.double() - expected).norm()
    assert float(error) <= LIMITS[dtype] * float(expected.norm()) + 1e-30


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("name", PATTERNS)
def test_it_computes_what_the_dense_matrix_does(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    p = pattern(name)
    layer = es.SparseLinear(p.shape[1], p.shape[0], p, dtype=dtype)
    plain = es.exportable(layer)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    for lead in ((), (0,), (5,), (2, 0, 3), (2, 1, 3)):
        x = torch.randn(*lead, p.shape[1]).to(dtype)
        _close(plain(x), x.double() @ weight.T + bias, dtype)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=dtype_name)
def test_blocks_are_summed_in_fp32(dtype: torch.dtype) -> None:
    """Ones that are added in the dtype itself stop at 256 in bfloat16, and at 2048 in float16."""
    layer = es.SparseLinear(4096, 2, es.BlockPattern.dense((2, 4096), (1, 1)), bias=False, dtype=dtype)
    nn.init.ones_(layer.values)
    assert es.exportable(layer)(torch.ones(1, 4096, dtype=dtype)).tolist() == [[4096.0, 4096.0]]


def test_a_batch_of_any_size_and_no_operation_of_ours() -> None:
    torch.manual_seed(0)
    p = pattern("masked-ragged")
    layer = es.SparseLinear(p.shape[1], p.shape[0], p, bias=False, dtype=FLOAT64)
    net = nn.Sequential(layer, nn.Tanh(), nn.Linear(p.shape[0], 5).double())
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    example = torch.randn(3, 4, p.shape[1], dtype=FLOAT64)
    program = torch.export.export(es.exportable(net), (example,), dynamic_shapes=({0: batch, 1: length},))
    assert not _ours(program)
    assert _ours(torch.export.export(net, (example,)))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for lead in ((2, 2), (7, 5), (20, 3)):
        x = torch.randn(*lead, p.shape[1], dtype=FLOAT64)
        torch.testing.assert_close(loaded(x), net(x))
        traced = torch.jit.trace(es.exportable(layer), example)
        torch.testing.assert_close(traced(example), layer(example))


def test_only_the_blocks_are_stored_and_the_model_stays_as_it_was() -> None:
    layer = es.SparseLinear(256, 128, density=0.25, block_shape=(16, 32))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    plain = es.exportable(nn.ModuleDict({"a": layer, "b": layer}).eval())
    assert plain["a"] is plain["b"]
    assert not plain["a"].training
    assert sum(parameter.numel() for parameter in plain.parameters()) == layer.values.numel() + 128
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    plain["a"].blocks.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_it_moves_and_is_saved_as_any_module() -> None:
    torch.manual_seed(0)
    layer = es.SparseLinear(64, 32, density=0.25, block_shape=(8, 8))
    plain, x = es.exportable(layer), torch.randn(3, 64)
    other = es.exportable(es.SparseLinear(64, 32, density=0.25, block_shape=(8, 8)))
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(x), plain(x))
    torch.testing.assert_close(plain.double()(x.double()).float(), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        _close(plain.float()(x), layer(x).double(), BFLOAT16)


@pytest.mark.parametrize("support", [es.Local(), es.Dilated(1), es.LowRank(2)], ids=str)
def test_an_embedded_net(support: es.Support) -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)).double()
    x = torch.randn(2, 3, 8, 8, dtype=FLOAT64)
    net = es.embed(cnn, x, support=support)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    plain = es.exportable(net)
    torch.testing.assert_close(plain(x), net(x))
    assert not any(isinstance(module, es.SparseLinear) for module in plain.modules())
    assert not _ours(torch.export.export(plain, (x,)))
    torch.testing.assert_close(es.exportable(plain)(x), net(x))  # a copy of a copy
    torch.testing.assert_close(plain.float()(x.float()), net(x).float())


class _AsksItsConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.to(self.conv.weight.dtype))


@pytest.mark.parametrize("convert", [es.exportable, es.densify])
def test_an_embedded_copy_answers_for_its_kernel_and_is_not_measured(
    convert: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = es.embed(_AsksItsConvolution(), x)
    plain = convert(net)
    torch.testing.assert_close(plain(x), net(x))
    assert plain.conv.weight.shape == (8, 3, 3, 3)
    cnn, blocks = _AsksItsConvolution(), net.conv.linear.pattern
    steps = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (cnn, net)]
    measures: list[Callable[[nn.Module], object]] = [
        es.unembed,
        es.deviation,
        lambda net: es.project(net, onto="cnn"),
        es.locality,
        lambda net: es.training.carry_state(cnn, steps[0], net, steps[1]),
    ]
    copies = [plain]
    if convert is es.densify:  # blocks of the same shape, at other places than the ties'
        rule = dict(density=blocks.density, block_shape=blocks.block_shape)
        copies.append(es.sparsify(es.densify(net), {"conv.linear": rule}))
    for measure, model in itertools.product(measures, copies):
        with pytest.raises(
            TypeError, match=r"^linear of EmbeddedConv\(3, 8\) must be its own SparseLinear, got another"
        ):
            measure(model)


def test_a_delta_is_in_the_weight() -> None:
    p = pattern("masked-ragged")
    layer = es.SparseDelta(nn.Linear(p.shape[1], p.shape[0]).double(), p)
    nn.init.normal_(layer.delta.values)
    x = torch.randn(3, p.shape[1], dtype=FLOAT64)
    plain = es.exportable(nn.Sequential(layer))
    assert type(plain[0]) is nn.Linear
    torch.testing.assert_close(plain(x), layer(x))


def test_a_model_that_reads_weights() -> None:
    """As the encoder layer does, to choose its way, and T5 for a dtype."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    es.sparsify(model, {"linear*": dict(density=0.4, block_shape=(8, 16))})
    plain, x = es.exportable(model), torch.randn(2, 5, 32)
    torch.testing.assert_close(plain(x), model(x))
    torch.testing.assert_close(torch.export.export(plain, (x,)).module()(x), model(x))
    for name in PATTERNS:
        p = pattern(name)
        layer = es.SparseLinear(p.shape[1], p.shape[0], p)
        assert torch.equal(es.exportable(layer).weight, layer.weight.detach())


def test_an_input_of_another_width_is_refused() -> None:
    plain = es.exportable(es.SparseLinear(64, 32, density=0.4, block_shape=(8, 8)))
    for width in (0, 32, 60, 72, 128):
        with pytest.raises(ValueError, match=rf"^x must be \[\.\.\., 64\], got \[2, {width}\]$"):
            plain(torch.randn(2, width))


def test_on_the_meta_device_all_of_it_is_there() -> None:
    p = pattern("masked-ragged")
    plain = es.exportable(es.SparseLinear(p.shape[1], p.shape[0], p, device="meta"))
    assert {tensor.device.type for tensor in plain.state_dict().values()} == {"meta"}


class _Doubled(es.SparseLinear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("convert", [es.exportable, es.densify])
def test_what_a_copy_would_lose_is_refused(convert: Callable[[nn.Module], nn.Module]) -> None:
    sizes: dict[str, Any] = dict(density=0.4, block_shape=(8, 8))
    net = nn.Sequential(es.SparseLinear(64, 32, **sizes))
    handle = net[0].register_forward_pre_hook(lambda module, x: None)
    with pytest.raises(ValueError, match=r"^cannot replace '0' \(SparseLinear\) in a copy: its hooks would be lost$"):
        convert(net)
    handle.remove()
    convert(net)
    with pytest.raises(ValueError, match=r"^cannot replace _Doubled in a copy: its class has a forward of its own$"):
        convert(_Doubled(64, 32, **sizes))
    net.forward = torch.compile(net.forward)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^cannot copy Sequential: its compiled forward calls the original; compile"):
        convert(net)
    delta = es.SparseDelta(nn.Linear(64, 32), es.BlockPattern.dense((32, 64), (8, 8)))
    delta.linear.register_forward_hook(lambda module, x, y: None)
    with pytest.raises(ValueError, match=r"^cannot replace SparseDelta in a copy: its hooks would be lost$"):
        convert(delta)


@pytest.mark.slow
def test_the_exporter_that_traces_is_refused(tmp_path: Path) -> None:
    """It writes the sum over blocks as if the last block were the only one (torch 2.13)."""
    pytest.importorskip("onnxscript")
    plain = es.exportable(es.SparseLinear(64, 32, density=0.4, block_shape=(8, 8))).eval()
    with pytest.raises(NotImplementedError, match="must be called with dynamo=True, got dynamo=False"):
        torch.onnx.export(plain, (torch.randn(2, 64),), tmp_path / "model.onnx", dynamo=False)


@pytest.mark.slow
@pytest.mark.parametrize("support", [es.Local(), es.LowRank(2)], ids=str)
def test_onnx_runtime(support: es.Support, tmp_path: Path) -> None:
    """The recipe of docs/howto/deploy.md, and what its result computes elsewhere."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    x, file = torch.randn(3, 2, 6, 6), str(tmp_path / "model.onnx")
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16))
    model = es.sparsify(es.embed(cnn, x, support=support), {"3": dict(density=0.5, block_shape=(8, 16))})
    batch = torch.export.Dim("batch")
    torch.onnx.export(es.exportable(model).eval(), (x,), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    session = runtime.InferenceSession(file)
    for count in (1, 3, 8):
        x = torch.randn(count, 2, 6, 6)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model(x))
