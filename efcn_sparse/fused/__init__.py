"""Optimizer steps inside the backward pass: the gradient of the values is never held whole."""

from efcn_sparse.fused.optimizer import FusedOptimizer as FusedOptimizer
