"""The loss landscape between a CNN and its fully-connected twin: parts of the weights, curvature, paths."""

from efcn_sparse.landscape.hessian import Hessian as Hessian
from efcn_sparse.landscape.hessian import Trace as Trace
from efcn_sparse.landscape.hessian import hessian as hessian
from efcn_sparse.landscape.parts import ablation as ablation
