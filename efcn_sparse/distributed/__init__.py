"""Sparse layers over several processes, and what PyTorch's own tools for that cannot know about patterns."""

import torch.distributed

if not torch.distributed.is_available():
    raise ImportError("efcn_sparse.distributed needs a torch that was built with torch.distributed")

from efcn_sparse.distributed.block_rows import BlockRowParallel as BlockRowParallel
from efcn_sparse.distributed.data_parallel import check_same_patterns as check_same_patterns
from efcn_sparse.distributed.data_parallel import join_factors as join_factors
