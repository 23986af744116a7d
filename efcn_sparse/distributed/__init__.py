"""Sparse layers over several processes, where PyTorch's own tools need a word about patterns."""

import torch.distributed

if not torch.distributed.is_available():
    raise ImportError("efcn_sparse.distributed needs a torch that was built with torch.distributed")

from efcn_sparse.distributed.block_rows import BlockRowParallel as BlockRowParallel
from efcn_sparse.distributed.factors import join_factors as join_factors
from efcn_sparse.distributed.same_patterns import check_same_patterns as check_same_patterns
