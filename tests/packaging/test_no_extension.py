"""Without its compiled extension the package works, and says why the extension is not there."""

WORKS = """
import torch, efcn_sparse as es
print(es.extension_status())
pattern = es.BlockPattern.random((32, 16), (8, 8), density=0.5)
layer = es.SparseLinear(16, 32, pattern)
x = torch.randn(4, 16, requires_grad=True)
dense = layer.to_linear()
y = layer(x)
dy = torch.randn_like(y)
dx, dvalues = torch.autograd.grad(y, (x, layer.values), dy)
dense_dx, dense_dw = torch.autograd.grad(dense(x), (x, dense.weight), dy)
torch.testing.assert_close(y, dense(x))
torch.testing.assert_close(dx, dense_dx)
torch.testing.assert_close(dvalues, pattern.gather(dense_dw))
try:
    es.spmm(x, layer.values, pattern, backend="cpu")
except RuntimeError as error:
    print(error)
print(es.explain(layer).reasons["cpu"])
print(es.explain(layer).backend)
"""


def test_works_without_extension(python):
    status, refusal, reason, backend = python(WORKS, EFCN_EXTENSION="off").splitlines()
    assert status == "no extension: EFCN_EXTENSION=off is set"
    assert reason == "the compiled extension is missing: EFCN_EXTENSION=off is set"
    assert refusal == f"backend 'cpu' cannot run torch.float32 on cpu: {reason}"
    assert backend == "reference"
