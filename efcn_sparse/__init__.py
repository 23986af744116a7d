"""Block-sparse layers for PyTorch that train, and fully-connected twins of CNNs built from them.

Modules, each imported at its first use: ``analysis`` (figures and reports of runs), ``checkpoint`` (checkpoints in
shards), ``convert`` (torch's and SciPy's sparse matrices), ``distributed`` (several processes), ``init`` (initial
values), ``landscape`` (the loss around and between nets), ``planning`` (what training takes) and ``training`` (the
paper's protocol).
"""

import importlib

from efcn_sparse.activation import MaxPool2d as MaxPool2d
from efcn_sparse.activation import ReLU as ReLU
from efcn_sparse.activation import Sequential as Sequential
from efcn_sparse.embedding import Dilated as Dilated
from efcn_sparse.embedding import Full as Full
from efcn_sparse.embedding import Grown as Grown
from efcn_sparse.embedding import Local as Local
from efcn_sparse.embedding import LocallyConnected1d as LocallyConnected1d
from efcn_sparse.embedding import LocallyConnected2d as LocallyConnected2d
from efcn_sparse.embedding import LocallyConnected3d as LocallyConnected3d
from efcn_sparse.embedding import LowRank as LowRank
from efcn_sparse.embedding import embed as embed
from efcn_sparse.embedding import start_low_rank as start_low_rank
from efcn_sparse.embedding import unembed as unembed
from efcn_sparse.extension import extension_status as extension_status
from efcn_sparse.finetune import SparseDelta as SparseDelta
from efcn_sparse.fused import FusedOptimizer as FusedOptimizer
from efcn_sparse.gradients import outside_gradient_norm as outside_gradient_norm
from efcn_sparse.gradients import record_factors as record_factors
from efcn_sparse.gradients import record_leak as record_leak
from efcn_sparse.growth import Growth as Growth
from efcn_sparse.growth import adopt_patterns as adopt_patterns
from efcn_sparse.growth import regrow as regrow
from efcn_sparse.linear import SparseLinear as SparseLinear
from efcn_sparse.linear import densify as densify
from efcn_sparse.linear import exportable as exportable
from efcn_sparse.linear import sparsify as sparsify
from efcn_sparse.linear import sparsity as sparsity
from efcn_sparse.measure.advise import advise as advise
from efcn_sparse.memory import empty_cache as empty_cache
from efcn_sparse.ops import explain as explain
from efcn_sparse.ops import sddmm as sddmm
from efcn_sparse.ops import spmm as spmm
from efcn_sparse.pattern import BlockPattern as BlockPattern
from efcn_sparse.pruning import CubicSchedule as CubicSchedule
from efcn_sparse.pruning import Pruner as Pruner
from efcn_sparse.subspace import deviation as deviation
from efcn_sparse.subspace import project as project
from efcn_sparse.subspace import record_gradient_parts as record_gradient_parts

__version__ = "0.2.0"

_HERE = {name for name, what in globals().items() if getattr(what, "__module__", "").startswith("efcn_sparse.")}
__all__ = sorted([*_HERE, "locality"])
_MODULES = ("analysis", "checkpoint", "convert", "distributed", "init", "landscape", "planning", "training")


def __getattr__(name: str) -> object:
    """The modules at their first use: none is part of importing a layer."""
    if name in _MODULES:
        return importlib.import_module(f"efcn_sparse.{name}")
    if name == "locality":
        return importlib.import_module("efcn_sparse.landscape").locality
    raise AttributeError(f"module 'efcn_sparse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))])
