"""Pruning while training: blocks of dense layers go step by step, then only the others are stored."""

from efcn_sparse.pruning.budget import CubicSchedule as CubicSchedule
from efcn_sparse.pruning.penalty import group_lasso as group_lasso
from efcn_sparse.pruning.pruner import Pruner as Pruner
