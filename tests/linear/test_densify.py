"""``densify`` gives a model without a block-sparse operation that computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import efcn_sparse as es
from tests.table import pattern


def _sparse(name: str) -> es.SparseLinear:
    p = pattern(name)
    return es.SparseLinear(p.shape[1], p.shape[0], p, dtype=torch.float64)


def test_it_computes_the_same_and_exports_without_our_operators() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(_sparse("masked-ragged"), nn.Tanh(), nn.Linear(29, 5).double())
    dense, x = es.densify(net), torch.randn(3, 43, dtype=torch.float64)
    torch.testing.assert_close(dense(x), net(x))
    assert [type(module) for module in dense] == [nn.Linear, nn.Tanh, nn.Linear]
    assert isinstance(net[0], es.SparseLinear)
    assert dense[2].weight is not net[2].weight
    targets = [str(node.target) for node in torch.export.export(dense, (x,)).graph.nodes]
    assert not [target for target in targets if "efcn_sparse" in target]
    assert [str(n.target) for n in torch.export.export(net, (x,)).graph.nodes if "efcn_sparse" in str(n.target)]


@pytest.mark.slow
def test_onnx_of_the_dense_twin(tmp_path: Path) -> None:
    """What the dense file computes elsewhere."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    x, file = torch.randn(3, 2, 6, 6), str(tmp_path / "model.onnx")
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16))
    model = es.sparsify(es.embed(cnn, x, support=es.Dilated(1)), {"3": dict(density=0.5, block_shape=(8, 16))})
    torch.onnx.export(es.densify(model).eval(), (x,), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x))


def test_what_is_shared_stays_shared() -> None:
    layer = _sparse("square")
    dense = es.densify(nn.ModuleDict({"a": layer, "b": layer}))
    assert dense["a"] is dense["b"]
    assert type(es.densify(layer)) is nn.Linear


def test_an_embedded_net() -> None:
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net = es.embed(cnn, x, support=es.Dilated(1))
    dense = es.densify(net)
    torch.testing.assert_close(dense(x), cnn(x))
    torch.testing.assert_close(dense.float()(x.float()), cnn(x).float())
    assert not any(isinstance(module, es.SparseLinear) for module in dense.modules())


def test_a_low_rank_part_is_refused() -> None:
    net = es.embed(nn.Sequential(nn.Conv2d(2, 2, 3)), torch.zeros(1, 2, 5, 5), support=es.LowRank(1))
    with pytest.raises(NotImplementedError, match=r"^0: must have no low-rank part.* exportable\(model\) .* unembed"):
        es.densify(net)


@pytest.mark.parametrize("merged", [False, True])
def test_a_delta_is_in_the_weight(merged: bool) -> None:
    """Linears of fine-tuned models, whose inner ``delta`` is a sparse layer as well."""
    torch.manual_seed(0)
    p = pattern("masked-ragged")
    layer = es.SparseDelta(nn.Linear(p.shape[1], p.shape[0]).double(), p)
    nn.init.normal_(layer.delta.values)
    net, x = nn.Sequential(layer, nn.Tanh()), torch.randn(3, p.shape[1], dtype=torch.float64)
    y, weight = net(x), layer.weight.detach().clone()
    if merged:
        layer.merge()
    dense = es.densify(net)
    assert type(dense[0]) is nn.Linear
    torch.testing.assert_close(dense[0].weight, weight)
    torch.testing.assert_close(dense(x), y)
    assert layer.merged is merged
    layer.unmerge()
    torch.testing.assert_close(net(x), y)
