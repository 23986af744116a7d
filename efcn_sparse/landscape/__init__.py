"""The loss landscape between a CNN and its fully-connected twin: paths, curvature, ablation, locality."""

from efcn_sparse.landscape.hessian import Hessian as Hessian
from efcn_sparse.landscape.hessian import Trace as Trace
from efcn_sparse.landscape.hessian import hessian as hessian
from efcn_sparse.landscape.locality import LayerLocality as LayerLocality
from efcn_sparse.landscape.locality import Locality as Locality
from efcn_sparse.landscape.locality import locality as locality
from efcn_sparse.landscape.parts import ablation as ablation
from efcn_sparse.landscape.path import Path as Path
from efcn_sparse.landscape.path import path as path
from efcn_sparse.landscape.spectrum import power_spectrum as power_spectrum
from efcn_sparse.landscape.string import string as string
from efcn_sparse.landscape.weight_matching import align as align
