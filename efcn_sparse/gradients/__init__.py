"""The gradients of sparse layers as two factors, and how much of them falls outside a support."""

from efcn_sparse.gradients.factors import Factors as Factors
from efcn_sparse.gradients.factors import record_factors as record_factors
from efcn_sparse.gradients.leak import LayerLeak as LayerLeak
from efcn_sparse.gradients.leak import Leak as Leak
from efcn_sparse.gradients.leak import record_leak as record_leak
from efcn_sparse.gradients.norms import outside_gradient_norm as outside_gradient_norm
