"""SpMM and SDDMM over blocks: one contract, many backends."""

from efcn_sparse.ops import contract as contract
from efcn_sparse.ops.api import sddmm as sddmm
from efcn_sparse.ops.api import spmm as spmm
from efcn_sparse.ops.explain import Explanation as Explanation
from efcn_sparse.ops.explain import explain as explain
from efcn_sparse.ops.flops import count_flops as _count_flops

_count_flops()
