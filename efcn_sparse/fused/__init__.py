"""Optimizer steps inside the backward pass: the gradient of the values is never held whole."""

from efcn_sparse.fused.optimizer import FusedOptimizer as FusedOptimizer
from efcn_sparse.fused.optimizer import updating as updating
from efcn_sparse.fused.state import set_state as set_state
from efcn_sparse.fused.state import state_of as state_of
