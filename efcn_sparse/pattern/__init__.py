"""Patterns: which blocks of a matrix are stored."""

from efcn_sparse.pattern.block_pattern import BlockPattern as BlockPattern
from efcn_sparse.pattern.structure import Structure as Structure
