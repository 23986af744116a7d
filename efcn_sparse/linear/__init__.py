"""Layers over the two operations."""

from efcn_sparse.linear.exportable import exportable as exportable
from efcn_sparse.linear.report import sparsity as sparsity
from efcn_sparse.linear.sparse_linear import Product as Product
from efcn_sparse.linear.sparse_linear import SparseLinear as SparseLinear
from efcn_sparse.linear.sparsify import densify as densify
from efcn_sparse.linear.sparsify import sparsify as sparsify
