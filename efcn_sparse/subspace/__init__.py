"""The CNN subspace of an embedded network: how far the weights are from it, and the way back."""

from efcn_sparse.subspace.deviation import Deviation as Deviation
from efcn_sparse.subspace.deviation import LayerDeviation as LayerDeviation
from efcn_sparse.subspace.deviation import deviation as deviation
from efcn_sparse.subspace.gradient_parts import GradientParts as GradientParts
from efcn_sparse.subspace.gradient_parts import LayerGradientParts as LayerGradientParts
from efcn_sparse.subspace.gradient_parts import record_gradient_parts as record_gradient_parts
from efcn_sparse.subspace.project import project as project
