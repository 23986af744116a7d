"""Without its compiled extension the package works, and says why the extension is not there."""

import os
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

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


LACKS_BRGEMM = """
import sys, types
import efcn_sparse.extension
names = dict.fromkeys(efcn_sparse.extension._NEEDED, 1)
sys.modules["efcn_sparse._C"] = types.SimpleNamespace(__file__="_C.so", **names | {"BRGEMM": False})
import efcn_sparse as es
print(es.extension_status(), es.extension_status().available)
"""


@pytest.mark.parametrize("meant", [False, True])
def test_says_once_that_torch_has_no_brgemm(run, meant):
    off = dict(EFCN_BRGEMM="off") if meant else {}
    done = run([sys.executable, "-c", LACKS_BRGEMM], PYTHONPATH=str(ROOT), **off)
    assert done.stdout == "compiled extension without brgemm loaded from _C.so True\n", done.stderr
    assert done.stderr.count("this torch has no cpublas::brgemm") == (0 if meant else 1)


TWO_DTYPES = """
import torch, efcn_sparse as es
pattern = es.BlockPattern.random((32, 16), (8, 8), density=0.5)
for dtype in (torch.float32, torch.float64):
    for _ in range(2):
        es.SparseLinear(16, 32, pattern, dtype=dtype)(torch.randn(4, 16, dtype=dtype))
"""


@pytest.mark.parametrize("meant", [False, True])
def test_says_once_that_it_is_slow(project, run, meant):
    """``project`` is the package without what was built."""
    path = os.pathsep.join([str(project), sysconfig.get_path("purelib")])
    off = dict(EFCN_EXTENSION="off") if meant else {}
    # -S: no .pth files, or an editable installation in this environment would lend it its extension.
    done = run([sys.executable, "-S", "-c", TWO_DTYPES], PYTHONPATH=path, **off)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert len(said) == (0 if meant else 1)
    if not meant:
        assert (
            "plain torch for cpu tensors, which is several times slower: the compiled extension is missing" in said[0]
        )
        assert "it was not built; reinstall with a C++ compiler and EFCN_BUILD=cpu" in said[0]


def test_import_brings_neither_dynamo_nor_triton(python):
    """Both are slow to import, and Triton reads TRITON_INTERPRET when it is."""
    code = "import sys, efcn_sparse; print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])"
    assert python(code).strip() == "[]"
