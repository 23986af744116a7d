"""Blocks that move to where the gradient is large."""

from efcn_sparse.growth.adopt import adopt_patterns as adopt_patterns
from efcn_sparse.growth.regrow import Regrown as Regrown
from efcn_sparse.growth.regrow import regrow as regrow
from efcn_sparse.growth.schedule import Growth as Growth
