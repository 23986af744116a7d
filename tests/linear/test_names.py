"""What ``import efcn_sparse as es`` offers: every name is listed, and modules are there at their first use."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import efcn_sparse as es

MODULES = {"analysis", "checkpoint", "convert", "distributed", "init", "landscape", "planning", "training"}


def test_all_and_dir() -> None:
    assert {"SparseLinear", "sparsify", "BlockPattern", "embed", "locality"} < set(es.__all__)
    assert set(es.__all__) | MODULES <= set(dir(es))
    assert not any(isinstance(getattr(es, name), ModuleType) for name in es.__all__)


def test_modules_come_at_their_first_use() -> None:
    program = (
        "import sys, efcn_sparse as es; late = sys.argv[1].split()\n"
        "assert not [name for name in late if f'efcn_sparse.{name}' in sys.modules]\n"
        "assert all(getattr(es, name).__name__ == f'efcn_sparse.{name}' for name in late)\n"
        "from efcn_sparse import *\n"
        "assert SparseLinear is es.SparseLinear"
    )
    late = MODULES - {"convert"}  # the layer itself needs that one
    subprocess.run([sys.executable, "-c", program, " ".join(sorted(late))], check=True)
